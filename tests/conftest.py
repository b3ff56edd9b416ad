"""What several test files need."""

import functools
import importlib
import io
import logging
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from helpers import exit_code
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.diffusion.io import save_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.unet import ConditionalUNet
from wandb_server import forget


def pytest_collection_modifyitems(items):
    """Slow tests first, so that no process is left with one when the others have finished."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def logging_of_tensorboard():
    """Keep absl's handler from closing pytest's stderr when Hydra configures the logging.

    The lowest version of TensorBoard sets absl's logging up, and that handler closes any stream
    but the process's own.
    """
    with suppress(ImportError):
        absl = importlib.import_module("absl.logging")
        absl.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the course's real frames, which are not part of the project."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ICLEVR_SHARED", repository / "../shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real frames: {folder} is missing (ICLEVR_SHARED names another place)")
    return folder


@pytest.fixture
def program(monkeypatch):
    """Import a program of ``benchmarks/`` by its name, with what it imports from there."""
    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session", autouse=True)
def configs_parsed_once():
    """To parse YAML takes Hydra nearly half of a composition, and there are thousands of them."""
    known = (CONF.resolve(), Path(hydra.__file__).parent)
    load = OmegaConf.load

    @functools.cache
    def content(text):
        return OmegaConf.to_container(load(io.StringIO(text)))

    def load_once(file):
        name = getattr(file, "name", None)
        if name is None or not any(Path(name).is_relative_to(folder) for folder in known):
            return load(file)
        return OmegaConf.create(content(file.read()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load_once)
        yield


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Call a command with arguments, in an empty folder: its output and exit code."""
    monkeypatch.chdir(tmp_path)

    def call(program, *arguments):
        code = exit_code(program, *arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@contextmanager
def without_wandb_settings(folder):
    """An empty home folder, and none of W&B's environment variables."""
    forget()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("WANDB_") or name == "NETRC":
                patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setenv("WANDB_ERROR_REPORTING", "false")  # restored when the test ends
        patch.chdir(folder)
        yield folder
        forget()
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


@pytest.fixture
def home(tmp_path):
    """A home folder for wandb."""
    with without_wandb_settings(tmp_path / "home") as folder:
        yield folder


@pytest.fixture(scope="module")
def module_home(tmp_path_factory):
    """A home folder for wandb that the tests of a module share."""
    with without_wandb_settings(tmp_path_factory.mktemp("wandb") / "home") as folder:
        yield folder


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory):
    """A tiny untrained model, as a run would leave it."""
    net = ConditionalUNet(
        image_size=16,
        block_out_channels=[8, 16],
        attention=[False, False],
        mid_attention=False,
        layers_per_block=1,
        norm_groups=4,
    )
    model = Model(net, NoiseSchedule(timesteps=20), find_prediction("sample"), {"steps": 2})
    return save_model(model, tmp_path_factory.mktemp("run") / "weights")


CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: apt install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
