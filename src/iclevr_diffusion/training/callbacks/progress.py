"""Loss and throughput, on the progress bar and in the logs."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningsProgressBar
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor

from iclevr_diffusion.data.types import Batch
from iclevr_diffusion.utils.progress_bar import ProgressLines


class Throughput(L.Callback):
    """Logs ``train/images_per_second`` of all processes, every ``every_n_steps`` batches.

    Validation does not count.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.images_per_second = 0.0
        self._images = 0
        self._since = self._validation_start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._validation_start

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self._images += len(batch.images) * trainer.world_size
        if (batch_idx + 1) % self.every_n_steps == 0 or trainer.is_last_batch:
            now = time.perf_counter()
            self.images_per_second = self._images / (now - self._since)
            self._images, self._since = 0, now
            pl_module.log("train/images_per_second", self.images_per_second, rank_zero_only=True)


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with the last loss and the images per second.

    The loss is read only when the bar is refreshed: reading it at every step would make the
    processor wait for the accelerator.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(refresh_rate=10)
        self.throughput = throughput
        self._loss: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._loss = outputs["loss"]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        if self._loss is None:
            return {}
        return {
            "loss": f"{_mean_loss(self._loss, trainer):.4f}",
            "img/s": f"{self.throughput.images_per_second:.0f}",
        }


class ProgressInLines(LightningsProgressBar):
    """Progress as lines of a log, for output that is not a terminal: some twenty per training.

    Args:
        throughput: Measures the images per second.
        max_steps: Optimizer steps that end the training; -1 for no limit.
        lines: Counts the optimizer steps; None for lines on standard error.
    """

    def __init__(
        self, throughput: Throughput, max_steps: int = -1, lines: ProgressLines | None = None
    ) -> None:
        super().__init__()
        self.throughput = throughput
        self.max_steps = max_steps
        self.lines = ProgressLines("step") if lines is None else lines
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        limits = [self.max_steps, trainer.estimated_stepping_batches]
        ends = [int(limit) for limit in limits if 0 < limit < float("inf")]
        self.lines.begin(trainer.global_step, min(ends, default=None))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.lines.done = trainer.global_step
        if self._enabled and self.lines.is_due():
            loss = _mean_loss(outputs["loss"], trainer)
            speed = self.throughput.images_per_second
            measured = f", {speed:.0f} img/s" if speed else ""  # not before the first measurement
            self.lines.write(f"epoch {trainer.current_epoch}, loss {loss:.4f}{measured}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lines.done = trainer.global_step
        if self._enabled:
            self.lines.write(f"epoch {trainer.current_epoch}")


def _mean_loss(loss: Tensor, trainer: L.Trainer) -> float:
    """Return the loss of a batch, undoing Lightning's division by accumulated batches."""
    return float(loss) * trainer.accumulate_grad_batches
