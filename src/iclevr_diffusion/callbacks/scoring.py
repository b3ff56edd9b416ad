"""Draw the conditions during training, and score what was drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import lightning as L
import torch
from torch import Tensor, nn

from iclevr_diffusion.callbacks.ema import averaged_net
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, sample
from iclevr_diffusion.labels import LabelSet, encode_all
from iclevr_diffusion.loggers import log_picture
from iclevr_diffusion.metrics import LabelAccuracy
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.pictures import grid, save_picture
from iclevr_diffusion.rng import image_generators


class Scoring(L.Callback):
    """Every n epochs, and after the last: draw each condition list with the averaged network.

    The noise is the same every time, so that pictures of different epochs compare. Every process
    draws its share. The first one writes ``sample_<list>_<epoch>.png``; with an evaluator,
    ``score/<list>/accuracy`` is logged.

    Args:
        conditions: condition lists by name.
        sampler, guidance_scale: how to draw.
        every_n_epochs: 0 draws only after the last epoch.
        folder: where the grids go.
        evaluator: (B, 3, H, W) in [-1, 1] → (B, L); None draws without scoring.
        seed: of the noise.

    Raises:
        ValueError: ``every_n_epochs`` is negative.
    """

    def __init__(
        self,
        conditions: Mapping[str, Sequence[LabelSet]],
        sampler: Sampler,
        guidance_scale: float,
        every_n_epochs: int,
        folder: Path,
        evaluator: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if every_n_epochs < 0:
            raise ValueError(
                f"callbacks.scoring.every_n_epochs must be 0 or more, got {every_n_epochs}"
            )
        self.conditions = conditions
        self.sampler = sampler
        self.guidance_scale = guidance_scale
        self.every_n_epochs = every_n_epochs
        self.folder = folder
        self.evaluator = evaluator
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.evaluator is not None:
            self.evaluator.to(pl_module.device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs > 0 and epoch % self.every_n_epochs == 0
        if due or _is_last_epoch(trainer):
            for name, label_sets in self.conditions.items():
                self._score(trainer, cast(DiffusionModule, pl_module), name, label_sets)

    def _score(
        self,
        trainer: L.Trainer,
        module: DiffusionModule,
        name: str,
        label_sets: Sequence[LabelSet],
    ) -> None:
        labels = encode_all(label_sets).to(module.device)
        images = self._draw_on_all_ranks(trainer, module, labels)
        if self.evaluator is not None:
            accuracy = LabelAccuracy().to(module.device)
            accuracy.update(self.evaluator(images), labels)
            module.log(f"score/{name}/accuracy", accuracy.compute(), rank_zero_only=True)
        if trainer.is_global_zero:
            captions = [", ".join(names) for names in label_sets]
            picture = grid(images, captions=captions)
            save_picture(picture, self.folder / f"sample_{name}_{trainer.current_epoch:04d}.png")
            key = "sample/grid" if name == "test" else f"sample/grid_{name}"
            log_picture(trainer.loggers, key, picture, trainer.global_step)

    def _draw_on_all_ranks(
        self, trainer: L.Trainer, module: DiffusionModule, labels: Tensor
    ) -> Tensor:
        """All pictures on every rank, (N, 3, H, W), each drawn by one of them."""
        rank, world_size = trainer.global_rank, trainer.world_size
        share = -(-len(labels) // world_size)
        # Ranks draw equally many, so that they can be gathered; the surplus repeats the last.
        mine = torch.arange(rank * share, (rank + 1) * share).clamp(max=len(labels) - 1)
        net = averaged_net(trainer, module)
        was_training = net.training
        net.eval()
        denoiser = Denoiser(net, module.schedule, module.objective.prediction, self.guidance_scale)
        with trainer.precision_plugin.forward_context():
            images = sample(
                denoiser,
                labels[mine.to(labels.device)],
                self.sampler,
                image_generators(self.seed, mine.tolist(), "scoring"),
                image_shape=(3, module.net.config["image_size"], module.net.config["image_size"]),
            )
        net.train(was_training)
        gathered = trainer.strategy.all_gather(images)
        return gathered.flatten(0, 1)[: len(labels)] if world_size > 1 else images


def _is_last_epoch(trainer: L.Trainer) -> bool:
    steps_done = 0 < trainer.max_steps <= trainer.global_step
    epochs_done = (
        trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    )
    return steps_done or epochs_done or trainer.should_stop
