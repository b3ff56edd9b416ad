"""Stop when the loss or the gradient is NaN or infinite."""

from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.data.types import Batch
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.callbacks.checkpoint import newest_checkpoint
from iclevr_diffusion.utils.errors import TrainingError

NAMES_SHOWN = 8
MIN_LOSS_SCALE = 2.0**-16  # 32 overflows in a row from torch's initial scale, 2^16


class NaNGuard(L.Callback):
    """Ends the run at a NaN or infinite loss or gradient, before it reaches a checkpoint.

    On a CPU every step is checked at once. On an accelerator each check makes the processor wait,
    so the first bad step is recorded there and read every ``every_n_steps`` steps and before
    checkpoints are written.

    With 16-mixed precision a gradient may overflow: the step is skipped and the loss scale reduced.
    That is an error only if it continues until the scale is negligible.

    Args:
        every_n_steps: Interval of the checks on an accelerator.

    Raises:
        TrainingError: With the step, the files of its batch, and the last good checkpoint.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad: Tensor | None = None  # step and frames of its batch; step -1: none

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"].detach()
        finite = loss.isfinite()
        module = cast(TrainedModule, pl_module)
        norm = module.grad_norm
        if module.loss_scaler is not None:
            self._check_loss_scale(trainer, module.loss_scaler.get_scale())
        if norm is not None and not module.step_was_skipped:
            finite = finite & norm.isfinite()
        step = torch.full((1,), trainer.global_step, device=loss.device)
        this = torch.cat((step, batch.indices.to(loss.device)))
        if self._first_bad is None or self._first_bad.shape != this.shape:
            self._check(trainer)
            self._first_bad = torch.full_like(this, -1)
        self._first_bad = torch.where(finite | (self._first_bad[0] >= 0), self._first_bad, this)
        if loss.device.type == "cpu" or (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer)

    def _check_loss_scale(self, trainer: L.Trainer, scale: float) -> None:
        if scale < MIN_LOSS_SCALE:
            raise TrainingError(
                f"the gradient overflows in float16 at step {trainer.global_step}, even with a loss"
                f" scale of {scale:.1g};"
                f" {last_good(newest_checkpoint(trainer))}; use trainer.precision=32-true, or"
                " bf16-mixed where the GPU has it"
            )

    def _check(self, trainer: L.Trainer) -> None:
        if self._first_bad is None or int(self._first_bad[0]) < 0:
            return
        step, *indices = self._first_bad.tolist()
        raise TrainingError(
            f"the loss or its gradient is NaN or infinite at step {step}"
            f" ({frame_names(trainer, indices)}); {last_good(newest_checkpoint(trainer))};"
            " a lower optimizer.lr or a smaller optimizer.clip_norm usually helps"
        )


def last_good(checkpoint: Path | None) -> str:
    """Describe the checkpoint to resume from."""
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"


def frame_names(trainer: L.Trainer, indices: list[int]) -> str:
    """Name the files of training frames: the first few, and the number of the others."""
    names = trainer.datamodule.frame_names  # type: ignore[attr-defined]
    shown = ", ".join(names[index] for index in indices[:NAMES_SHOWN])
    more = len(indices) - NAMES_SHOWN
    return f"frames {shown}" + (f" and {more} more" if more > 0 else "")
