"""Small real parts that several test files train with."""

import json
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from iclevr_diffusion.cli import run_dir
from iclevr_diffusion.data.adapters import ICLEVRDataModule
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.training.loggers.wandb_files import records
from iclevr_diffusion.training.optimizer import OptimizerSettings

SIZE = 16
SMALL = (
    "net=tiny",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "data.image_size=32",
    "data.sequences=8",
    "data.batch_size=4",
    "data.val_fraction=0.2",
    "schedule.timesteps=20",
    "sampler.steps=2",
    "callbacks.scoring.sampler.steps=2",
    "callbacks.scoring.max_conditions=4",
)
SMALL_RUN = (
    "name=run",
    "net=tiny",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "data.image_size=32",
    "data.sequences=8",
    "data.batch_size=4",
    "data.val_fraction=0.2",
    "schedule.timesteps=20",
    "sampler=ddpm",
    "callbacks.scoring.every_n_epochs=0",
    "callbacks.scoring.sampler.steps=2",
    "callbacks.scoring.max_conditions=4",
)


def exit_code(program, *arguments):
    """Call a command with arguments, in this process and folder."""
    run_dir.new_or_latest.cache_clear()
    run_dir.new_folder.cache_clear()
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *arguments])
        try:
            program.main()
        except SystemExit as end:
            return end.code
    return 0


def slow(*cases):
    """Values of a parameter that vary others: they run with the slow tests."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]


class RandomFrames:
    """A data source of random images, three a sequence."""

    image_size = SIZE

    def __init__(self, sequences: int = 12) -> None:
        self.sequences = sequences

    def prepare_data(self) -> None: ...

    def load_frames(self) -> Frames:
        count = 3 * self.sequences
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator)
        labels = (torch.rand(count, NUM_LABELS, generator=generator) < 0.1).float()
        names = [f"frame_{index:03d}.png" for index in range(count)]
        return Frames(images.byte(), labels, torch.arange(count) // 3, names)

    def conditions(self) -> dict[str, list[tuple[str, ...]]]:
        return {"test": [("red cube",), ("red cube", "blue sphere"), ("cyan cylinder",)]}


class PixelReader(Evaluator):
    """Takes the first pixels of an image for its scores; tells ``on_read`` when it does."""

    name = "the pixel reader"
    num_features = NUM_LABELS
    max_count = 24

    def __init__(self, on_read=lambda: None):
        super().__init__()
        self.on_read = on_read

    def classify(self, images):
        self.on_read()
        scores = (images.flatten(1)[:, :NUM_LABELS] + 1) / 2
        return ClassifierOutput(scores, (scores > 0.5).sum(1), scores)


def tiny_module(
    seed: int = 0, label_drop: float = 0.1, dropout: float = 0.0, **optimizer
) -> DiffusionModule:
    torch.manual_seed(seed)
    net = ConditionalUNet(
        image_size=SIZE,
        block_out_channels=[8, 16],
        attention=[False, True],
        layers_per_block=1,
        norm_groups=4,
        dropout=dropout,
    )
    objective = Objective(NoiseSchedule(timesteps=50), "v_prediction")
    settings = OptimizerSettings(**{"lr": 1e-3, **optimizer})
    return DiffusionModule(net, objective, settings, label_drop, seed)


def tiny_gan(seed: int = 0, batch_sizes: tuple[int, ...] = (4, 2), **optimizer) -> GANModule:
    torch.manual_seed(seed)
    settings = OptimizerSettings(**{"name": "adam", "lr": 1e-3, **optimizer})
    networks = Generator(latent=4, channels=[8, 8]), Discriminator([8, 8])
    return GANModule(*networks, settings, batch_sizes, epochs=2, seed=seed)


def datamodule(seed: int = 0, batch_size: int = 4, sequences: int = 12) -> ICLEVRDataModule:
    data = ICLEVRDataModule(RandomFrames(sequences), batch_size=batch_size, val_fraction=0.1)
    data.order_seed = seed
    return data


def trainer(folder: Path, callbacks=(), **settings) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return L.Trainer(**{**defaults, **settings}, default_root_dir=folder, callbacks=list(callbacks))


def ema_of(trainer: L.Trainer) -> EMA:
    return next(callback for callback in trainer.callbacks if isinstance(callback, EMA))


def folders(name):
    return sorted(path for path in Path("outputs", name).iterdir() if path.is_dir())


class SaveAt(L.Callback):
    """Writes a checkpoint after a given batch, counted over all epochs."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batches_left = batch
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches_left -= 1
        if self.batches_left == 0:
            trainer.save_checkpoint(self.path)


def assert_same(ours, theirs, where="checkpoint"):
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def result(folder):
    """What a run ends with, but for times and for how Lightning counted its way there."""
    last, best = (
        torch.load(folder / "checkpoints" / name, weights_only=True)
        for name in ("last.ckpt", "best.ckpt")
    )
    for checkpoint in (last, best):
        del checkpoint["callbacks"]["Limits"], checkpoint["loops"]
    rows = [
        {key: value for key, value in row.items() if "per_second" not in key}
        for row in read_metrics(folder / "metrics.csv")
    ]
    return {"last": last, "best": best, "rows": rows}


def wandb_records_of(folder, kind):
    """The records of one kind in a run folder, of all processes."""
    return [
        getattr(record, kind)
        for file in sorted(folder.glob("wandb/*run-*/*.wandb"))
        for record in records(file)
        if record.HasField(kind)
    ]


def wandb_rows(folder):
    """The rows of the history in a run folder, by name; of a value of several parts, one."""
    return [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in record.item
        }
        for record in wandb_records_of(folder, "history")
    ]


def wandb_artifacts(folder, kind):
    return [record for record in wandb_records_of(folder, "artifact") if record.type == kind]


def artifact_files(artifact):
    """The paths of an artifact's files by name."""
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
