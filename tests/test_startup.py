"""What the commands import: the rest of their start is Python's, torch's and Hydra's."""

import subprocess
import sys

import pytest

START = """
import importlib, io, sys
from contextlib import redirect_stdout
from hydra.core.global_hydra import GlobalHydra
name, *arguments = sys.argv[1:]
names = name.split(",")
for name in names:
    sys.argv = [name, *arguments]
    output = io.StringIO()
    GlobalHydra.instance().clear()
    try:
        with redirect_stdout(output):
            importlib.import_module(f"iclevr_diffusion.{name}").main()
    except SystemExit as end:
        assert not end.code, end.code
    assert name in output.getvalue() or name == "sample", output.getvalue()
print(*sys.modules)
"""
HEAVY = {"lightning", "torchmetrics", "wandb", "matplotlib", "tensorboard"}
# Of the libraries that drawing needs: what compiles, counts operations, or tests hypotheses.
UNUSED = {
    "torch._dynamo",
    "torch.utils.flop_counter",
    "scipy.special",
    "diffusers.hooks",
}


def imported(names, *arguments, cwd):
    """The modules that commands have imported by their end, all in one process."""
    words = [sys.executable, "-c", START, names, *arguments]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_help_imports_neither_torch_nor_what_needs_it(tmp_path):
    names = "train,train_evaluator,sample,evaluate,report,export,app"
    modules = imported(names, "--help", cwd=tmp_path)
    assert "hydra" in modules
    assert not modules & {"torch", "torchvision", "diffusers", "numpy", "PIL", *HEAVY}


@pytest.mark.slow
def test_sampling_imports_nothing_of_training_plotting_or_compiling(tmp_path):
    words = ("labels='red cube'", "n=1", "sampler.steps=2", "out=out")
    modules = imported("sample", *words, cwd=tmp_path)
    assert {"torch", "diffusers", "PIL"} <= modules
    assert sorted(modules & {"torchvision", "transformers", *HEAVY, *UNUSED}) == []


API = """
import sys
import iclevr_diffusion
from iclevr_diffusion import diffusion, models
assert not set(sys.argv[1].split(",")) & set(sys.modules), "importing the package is not light"
for package in (iclevr_diffusion, diffusion, models):
    for name in package.__all__:
        if name == "ICLEVRPipeline":  # a class of diffusers, whose import takes seconds
            continue
        assert getattr(package, name) is not None, name
assert len(iclevr_diffusion.LABELS) == 24
try:
    models.Nothing
except AttributeError as error:
    assert "has no attribute 'Nothing'" in str(error)
print(*sys.modules)
"""


@pytest.mark.slow
def test_the_package_imports_what_it_exports_on_first_use(tmp_path):
    words = [sys.executable, "-c", API, "torch,diffusers,numpy,hydra"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"lightning", "wandb", "matplotlib", "hydra"}
