"""Small real parts that several test files train with."""

from pathlib import Path

import lightning as L
import torch

from iclevr_diffusion.callbacks.ema import EMA
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.data.frames import Frames
from iclevr_diffusion.diffusion.objective import Objective
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.labels import NUM_LABELS
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.modules.gan import GANModule
from iclevr_diffusion.modules.optimizer import OptimizerSettings
from iclevr_diffusion.nets.dcgan import Discriminator, Generator
from iclevr_diffusion.nets.evaluator import Evaluator, Reading
from iclevr_diffusion.nets.unet import ConditionalUNet

SIZE = 16


class RandomFrames:
    """A data source of random pictures, three a sequence."""

    def __init__(self, sequences: int = 12) -> None:
        self.sequences = sequences

    def prepare(self) -> None: ...

    def frames(self) -> Frames:
        count = 3 * self.sequences
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator)
        labels = (torch.rand(count, NUM_LABELS, generator=generator) < 0.1).float()
        names = [f"frame_{index:03d}.png" for index in range(count)]
        return Frames(images.byte(), labels, torch.arange(count) // 3, names)

    def conditions(self) -> dict[str, list[tuple[str, ...]]]:
        return {"test": [("red cube",), ("red cube", "blue sphere"), ("cyan cylinder",)]}


class PixelReader(Evaluator):
    """Takes the first pixels of a picture for its scores; tells ``on_read`` when it does."""

    name = "the pixel reader"
    num_features = NUM_LABELS
    max_count = 24

    def __init__(self, on_read=lambda: None):
        super().__init__()
        self.on_read = on_read

    def read(self, images):
        self.on_read()
        scores = (images.flatten(1)[:, :NUM_LABELS] + 1) / 2
        return Reading(scores, (scores > 0.5).sum(1), scores)


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
    return ICLEVRDataModule(
        RandomFrames(sequences), batch_size=batch_size, val_fraction=0.1, seed=seed
    )


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
