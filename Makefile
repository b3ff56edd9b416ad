PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(BIN)/uv

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart ablation bench-gpu test test-lowest notebooks test-all lint types play docs check wheel lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "ARGS go to the command:   make quickstart ARGS='trainer.max_steps=50'   make test ARGS='-k labels'"
	@echo "PYTHON and VENV choose:   make test PYTHON=python3.13 VENV=.venv313"

install: $(STAMP) ## Create .venv with the locked packages and this one (editable)

# pip takes four minutes for the whole lock and uv one, so pip installs only uv, from the lock.
$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock

# uv does not read pip's own settings; where only pip knows the way (a mirror, a proxy), pip does it all.
$(STAMP): pyproject.toml requirements.lock | $(UV)
	@echo "Installing the locked packages into $(VENV): 6 GB on Linux, some minutes the first time."
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock || { \
	  echo "uv failed; trying pip." >&2; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: $(STAMP) ## Train, sample and score on synthetic images: minutes, no data needed
	$(BIN)/python -m iclevr_diffusion.train experiment=quickstart $(ARGS)

ablation: $(STAMP) ## Compare noise schedules and predictions, with four seeds each: hours on two cores
	$(BIN)/python benchmarks/ablation.py --seeds 4 $(ARGS)

bench-gpu: $(STAMP) ## Benchmark a large GPU: training steps, sampling, accuracy over time; four minutes
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# One thread per process: two teams of threads on the same cores slow each other down tenfold.
# Bytecode is cached, since many tests start processes that import torch.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4
test: $(STAMP) ## Run the tests, on up to four cores, but for the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

# uv does not read pip's own settings, so they are handed over.
LOWEST := .venv-lowest
PIP_SETTINGS = $(foreach name,index-url extra-index-url find-links,$(addprefix --$(name)=,\
  $(shell $(BIN)/python -m pip config get global.$(name) 2>/dev/null)))
test-lowest: $(UV) ## Run the fast tests with the lowest versions that pyproject.toml allows
	@test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(UV) pip install --quiet --python $(LOWEST)/bin/python $(PIP_SETTINGS) \
	  --index-strategy unsafe-best-match --resolution lowest-direct --editable ".[tensorboard,sweeps]"
	$(UV) pip install --quiet --python $(LOWEST)/bin/python $(PIP_SETTINGS) --index-strategy unsafe-best-match --group dev
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 4 -m "not slow" $(ARGS)

notebooks: $(STAMP) ## Execute the notebooks and the code in docs/
	$(PYTEST) tests/test_notebooks.py tests/test_plugins.py $(ARGS)

test-all: $(STAMP) ## Run all tests: also those of several processes, sweeps and notebooks
	$(PYTEST) $(ARGS)

lint: $(STAMP) ## Check style, format, docstrings and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## Check the types
	$(BIN)/mypy

play: $(STAMP) ## Build the playable page, build/play; needs npm. Then make docs adds it to the site
	$(BIN)/python docs/play/build.py $(ARGS)

docs: $(STAMP) ## Build the documentation site, build/site/index.html; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

check: lint types docs test-all ## Lint, types, documentation and all tests

wheel: $(STAMP) ## Build dist/*.whl
	$(BIN)/hatchling build -t wheel

# The lock's first lines repeat this command. ARGS=--upgrade moves every pin to the newest version.
lock: $(UV) ## Write requirements.lock anew from pyproject.toml
	env -u UV_FIND_LINKS -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_TORCH_BACKEND $(UV) pip compile --quiet \
	  --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --extra tensorboard --extra sweeps --extra onnx --group dev --output-file requirements.lock $(ARGS) pyproject.toml

clean: ## Remove what was built and cached, not the environment or outputs
	rm -rf build dist .venv-ci .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
