"""Stop when the loss or the gradient is no number any more."""

from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.errors import TrainingError
from iclevr_diffusion.modules.optimizer import TrainedModule


class StopOnNonFinite(L.Callback):
    """Ends the run at a NaN or infinite loss or gradient, before it can reach a checkpoint.

    On a CPU every step is looked at as it happens. On an accelerator looking makes the processor
    wait, so the first bad step is remembered there, and read each ``every_n_steps`` and before
    checkpoints are written.

    Raises:
        TrainingError: with the step, and the last good checkpoint.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"].detach()
        if self._first_bad is None:
            self._first_bad = torch.full((), -1, device=loss.device)
        finite = loss.isfinite()
        norm = cast(TrainedModule, pl_module).grad_norm
        if norm is not None:
            finite = finite & norm.isfinite()
        self._first_bad = torch.where(
            finite | (self._first_bad >= 0), self._first_bad, trainer.global_step
        )
        if loss.device.type == "cpu" or (batch_idx + 1) % self.every_n_steps == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        step = -1 if self._first_bad is None else int(self._first_bad)
        if step < 0:
            return
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
        last_good = (
            f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint yet"
        )
        raise TrainingError(
            f"the loss or its gradient is not finite at step {step}; {last_good};"
            " a lower optimizer.lr or a smaller optimizer.clip_norm usually helps"
        )
