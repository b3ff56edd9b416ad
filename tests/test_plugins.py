"""A project of a user's own, used through ``--config-dir`` and ``plugins``, with no edit in src/.

It has other images and labels, a network, a noise schedule, a callback, a logger, a metric and an
evaluator: one module and one YAML file each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iclevr_diffusion.training.loggers import read_metrics

pytestmark = pytest.mark.slow
MODULE = '''
"""Coloured shapes in the cells of a 4x4 grid, each label in a cell of its own."""

from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from lightning.pytorch.loggers import Logger
from torch import nn

from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import Vocabulary
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.diffusion.schedule import Schedule, register_schedule
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.metrics import ImageMetric, register_metric
from iclevr_diffusion.models.registry import register_network

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHAPES = ("square", "bar", "pillar", "cross", "frame")
VOCABULARY = Vocabulary([f"{color} {shape}" for shape in SHAPES for color in COLORS])
SIZE, CELL, CELLS = 32, 8, 4


def mask(shape):
    """The pixels of a shape in its cell, bool, (8, 8)."""
    cell = torch.zeros(CELL, CELL, dtype=torch.bool)
    if shape in ("square", "frame"):
        cell[1:7, 1:7] = True
    if shape == "frame":
        cell[3:5, 3:5] = False
    if shape in ("bar", "cross"):
        cell[3:5, 1:7] = True
    if shape in ("pillar", "cross"):
        cell[1:7, 3:5] = True
    return cell


def cell_of(index):
    row, column = divmod(index, CELLS)
    return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


def draw(indices):
    """An image with these labels, uint8, (3, 32, 32)."""
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    for index in indices:
        color, shape = VOCABULARY.names[index].split()
        pixels = mask(shape)
        for channel, value in enumerate(COLORS[color]):
            image[channel][cell_of(index)][pixels] = value
    return image


class Shapes(DataModule):
    vocabulary = VOCABULARY
    image_size = SIZE

    def __init__(self, count: int, batch_size: int = 8, val_fraction: float = 0.2) -> None:
        super().__init__(batch_size, val_fraction)
        self.count = count

    def load_frames(self):
        generator = torch.Generator().manual_seed(0)
        chosen = [torch.randperm(15, generator=generator)[:2].tolist() for _ in range(self.count)]
        labels = torch.zeros(self.count, 15)
        for row, indices in enumerate(chosen):
            labels[row, indices] = 1
        return Frames(torch.stack([draw(indices) for indices in chosen]), labels)

    def conditions(self):
        return {
            "test": [("red square",), ("green bar", "blue frame")],
            "validation": [("blue cross",), ("red pillar", "green square"), ("red frame",)],
        }

    def description(self):
        return {"source": "shapes", "count": self.count}


@register_network
class CellNet(ModelMixin, ConfigMixin):
    takes_positions = False

    @register_to_config
    def __init__(self, image_size: int = 32, num_labels: int = 24, width: int = 8) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.condition = nn.Linear(num_labels + 1, width)
        self.before = nn.Conv2d(3, width, 3, padding=1)
        self.after = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x_t, timesteps, labels, positions=None):
        time = timesteps[:, None].to(labels.dtype) / 100
        condition = self.condition(torch.cat([labels, time], dim=1))
        return self.after(F.silu(self.before(x_t) + condition[:, :, None, None]))


@register_schedule
class SineSchedule(Schedule):
    """α and σ are cosine and sine of an angle that rises with a power of the time."""

    variance_preserving = True

    def __init__(self, timesteps: int = 100, power: float = 1.0) -> None:
        super().__init__(timesteps, {"timesteps": timesteps, "power": power})
        time = (torch.arange(timesteps) + 0.5) / timesteps
        self.register_buffer("angle", time**power * torch.pi / 2, persistent=False)

    @property
    def device(self):
        return self.angle.device

    def alpha(self, timesteps, like):
        return self._shaped(self.angle.cos(), timesteps, like)

    def sigma(self, timesteps, like):
        return self._shaped(self.angle.sin(), timesteps, like)

    def _shaped(self, table, timesteps, like):
        return table.to(like.dtype)[timesteps].view(-1, *[1] * (like.ndim - 1))


class ShapesEvaluator(Evaluator):
    name = "the shapes' evaluator"
    vocabulary = VOCABULARY
    num_features = 48
    max_count = 0

    def classify(self, images):
        small = F.avg_pool2d(images, images.shape[-1] // SIZE)
        scores = []
        for index in range(15):
            rows, columns = cell_of(index)
            wanted = draw([index]).float()[:, rows, columns] / 127.5 - 1
            error = (small[:, :, rows, columns] - wanted).abs().mean((1, 2, 3))
            scores.append((1 - 4 * error).clamp(0, 1))
        features = F.adaptive_avg_pool2d(small, CELLS).flatten(1)
        return ClassifierOutput(torch.stack(scores, dim=1), None, features)


@register_metric
class SomethingShown(ImageMetric):
    """Share of the images that show at least one shape."""

    name, title, higher_is_better = "something_shown", "something shown", True

    def measure(self, output, labels):
        return (output.scores > 0.5).any(1).sum(), len(labels)


class CountBatches(L.Callback):
    """Counts training batches over all processes that resume a run."""

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.folder, self.every, self.batches = folder, every, 0

    def on_train_batch_end(self, *_):
        self.batches += 1
        if self.batches % self.every == 0:
            (self.folder / "batches.txt").write_text(str(self.batches))

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class LinesLogger(Logger):
    """A line of text for each logged step."""

    def __init__(self, folder: Path, file: str = "lines.txt") -> None:
        super().__init__()
        self.path = folder / file

    @property
    def name(self):
        return "lines"

    @property
    def version(self):
        return ""

    def log_metrics(self, metrics, step=None):
        with self.path.open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")

    def log_hyperparams(self, params, *_, **__):
        pass
'''
CONFIGS = {
    "data/shapes": "{_target_: shapes_lab.Shapes, count: 40, batch_size: 8}",
    "net/cells": "{_target_: shapes_lab.CellNet, width: 8}",
    "schedule/sine": "{_target_: shapes_lab.SineSchedule, timesteps: 20, power: 1.5}",
    "evaluator/shapes": "{_target_: shapes_lab.ShapesEvaluator}",
    "callbacks/counted": "defaults: [default]\ncounted: {_target_: shapes_lab.CountBatches}\n",
    "logger/lines": (
        "defaults: [csv]\nlines: {_target_: shapes_lab.LinesLogger}\n"
        "lightning: {_target_: lightning.pytorch.loggers.CSVLogger, name: lightning_csv}\n"
    ),
    "experiment/shapes": """\
# @package _global_
defaults:
  - override /data: shapes
  - override /net: cells
  - override /schedule: sine
  - override /prediction: sample
  - override /evaluator: shapes
  - override /callbacks: counted
  - override /logger: lines
name: shapes
sampler: {steps: 2}
trainer: {max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false, accelerator: cpu}
callbacks: {scoring: {every_n_epochs: 1, sampler: {steps: 2}}}
""",
}
CALLS = """
import importlib, json, sys
from hydra.core.global_hydra import GlobalHydra
from iclevr_diffusion.cli import run_dir
for name, *words in json.loads(sys.argv[1]):
    run_dir.new_or_latest.cache_clear()
    run_dir.new_folder.cache_clear()
    GlobalHydra.instance().clear()
    sys.argv[:] = [name, *words]
    code = 0
    try:
        importlib.import_module(f"iclevr_diffusion.{name}").main()
    except SystemExit as end:
        code = end.code
    print(f"exit code of {name}: {code}", flush=True)
"""


def call(folder, *commands):
    """Run commands one after the other in a process of their own: what it printed."""
    words = [sys.executable, "-c", CALLS, json.dumps(commands)]
    environment = os.environ | {"HYDRA_FULL_ERROR": "", "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The user's folder, with a run that was stopped, resumed and evaluated."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "shapes_lab.py").write_text(MODULE)
    for name, text in CONFIGS.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    mine = ("--config-dir=conf", "experiment=shapes")
    out, err = call(
        folder,
        ["train", *mine, "trainer.max_steps=3"],
        ["train", *mine, "resume=true"],
        [
            "evaluate", "--config-dir=conf", "weights=outputs/shapes", "data=shapes",
            "evaluator=shapes", "lists=[test,all]", "seeds=1", "reference_frames=8", "out=scores",
        ],
    )  # fmt: skip
    assert out.count("exit code of train: 0") == 2, err
    assert "exit code of evaluate: 0" in out, err
    return folder


@pytest.fixture
def run_of(lab):
    (folder,) = (path for path in (lab / "outputs" / "shapes").iterdir() if path.is_dir())
    return folder


def test_the_run_is_resumed_with_the_users_network_schedule_data_and_callback(run_of):
    summary = json.loads((run_of / "summary.json").read_text())
    assert (summary["steps"], summary["data"]) == (8, "shapes")
    assert summary["evaluator"] == "the shapes' evaluator"
    assert (run_of / "batches.txt").read_text() == "8"
    assert json.loads((run_of / "weights" / "labels.json").read_text())[0] == "red square"
    config = json.loads((run_of / "weights" / "unet" / "config.json").read_text())
    assert (config["_class_name"], config["num_labels"]) == ("CellNet", 15)


def test_the_users_logger_and_lightnings_own_see_every_step(run_of):
    lines = (run_of / "lines.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if "train/loss" in line][-1] == "7"
    files = sorted(run_of.rglob("lightning_csv/**/metrics.csv"))
    assert len(files) == 2  # one for each process that trained
    assert all("train/loss" in file.read_text().splitlines()[0] for file in files)


def test_the_users_metric_is_logged_and_evaluated(lab, run_of):
    names = set().union(*read_metrics(run_of / "metrics.csv"))
    assert {"score/test/something_shown", "score/validation/accuracy"} <= names
    evaluation = json.loads((lab / "scores" / "evaluation.json").read_text())
    (setting,) = evaluation["settings"]
    assert "something_shown" in json.dumps(setting["lists"]["test"])
    assert evaluation["second_evaluator"] is None
    assert evaluation["lists"]["all"] == "every single, pair and triple"


def test_weights_of_a_users_classes_need_the_module_to_be_named(lab):
    words = ("weights=outputs/shapes", "n=1", "out=images")
    out, err = call(
        lab,
        ["sample", *words, "labels=red square"],
        ["sample", *words, "labels=red cube", "plugins=[shapes_lab]"],
        ["sample", *words, "labels=Red squares, blue frame", "plugins=[shapes_lab]"],
    )
    unknown, no_label = err.strip().splitlines()[-2:]
    assert "is unknown here" in unknown
    assert "plugins=[…]" in unknown
    assert no_label.startswith("error: unknown label 'red cube'; the closest are red ")
    assert "red square, blue frame: 1 images" in out
    assert (lab / "images" / "grid.png").is_file()


def test_a_slip_in_a_users_config_is_named(lab):
    mine = ("train", "--config-dir=conf", "experiment=shapes")
    _, err = call(
        lab,
        [*mine, "+net.widht=4"],
        [*mine, "schedule.power=x"],
        [*mine, "+callbacks.counted.evry=2"],
        [*mine, "net._target_=shapes_lab.CelNet"],
    )
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "net.widht: there is no such setting; did you mean net.width?",
        "schedule.power must be a finite number, got 'x'",
        "callbacks.counted.evry: there is no such setting; did you mean callbacks.counted.every?",
        "net._target_=shapes_lab.CelNet: there is no CelNet in shapes_lab; did you mean CellNet?",
    ]


def test_mlflow_logs_to_files_by_one_config(lab):
    pytest.importorskip("mlflow")
    (Path(lab) / "conf" / "logger" / "mlflow.yaml").write_text(
        "defaults: [csv]\nmlflow:\n  _target_: lightning.pytorch.loggers.MLFlowLogger\n"
        "  experiment_name: ${name}\n  tracking_uri: file:mlruns\n"
    )
    words = ("--config-dir=conf", "experiment=shapes", "logger=mlflow", "trainer.max_steps=2")
    out, err = call(lab, ["train", *words, "name=flow"])
    assert "exit code of train: 0" in out, err
    assert list((lab / "mlruns").rglob("metrics/train/loss"))
