"""End a training after a number of steps or an amount of time."""

from datetime import timedelta
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer

from iclevr_diffusion.training.callbacks.preemption import may_communicate
from iclevr_diffusion.utils.lightning_internals import epochs_processed


class Limits(Timer):
    """Ends the epoch, and thereby the training, after ``max_steps`` or ``max_time``.

    Lightning has settings with these names, but a run that they ended within an epoch cannot
    continue from there when they are raised. With this callback, it can. The end of the epoch
    (scoring, checkpoints) takes place as usual, except for the validation.

    Args:
        max_steps: Optimizer steps, resumed runs included; -1 for no limit.
        max_time: Time such as "00:01:30:00" (days, hours, minutes, seconds), resumed runs included;
            None for no limit.
        every_n_steps: Interval at which the processes agree on the time, as in
            :class:`~iclevr_diffusion.training.callbacks.preemption.StopOnSignal`.
        min_epochs, min_steps: Before these, ``max_time`` does not end the training; None for 0.

    Raises:
        ValueError: ``max_steps`` is 0 or below -1, ``max_time`` has another format or is not above
            0, or ``min_epochs`` or ``min_steps`` is negative.
    """

    def __init__(
        self,
        max_steps: int = -1,
        max_time: str | timedelta | dict[str, int] | None = None,
        every_n_steps: int = 1,
        min_epochs: int | None = None,
        min_steps: int | None = None,
    ) -> None:
        try:
            super().__init__(max_time, verbose=False)
        except (MisconfigurationException, TypeError, OverflowError) as error:
            raise ValueError(
                f"max_time must be days:hours:minutes:seconds, such as 00:01:30:00, got {max_time}"
            ) from error
        if max_steps < 1 and max_steps != -1:
            raise ValueError(f"max_steps must be at least 1, or -1; got {max_steps}")
        remaining = self.time_remaining()
        if remaining is not None and remaining <= 0:
            raise ValueError(f"max_time must be above 0, got {max_time}")
        for name, value in (("min_epochs", min_epochs), ("min_steps", min_steps)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be 0 or more, or null; got {value}")
        if min_steps is not None and 0 < max_steps < min_steps:
            raise ValueError(f"min_steps={min_steps} is more than max_steps={max_steps}")
        self.max_steps = max_steps
        self.every_n_steps = every_n_steps
        self.min_epochs = min_epochs or 0
        self.min_steps = min_steps or 0

    @property
    def state_key(self) -> str:
        return "Limits"

    def is_too_early(self, epochs: int, steps: int) -> bool:
        """Return whether ``min_epochs`` or ``min_steps`` do not let the training end yet."""
        return epochs < self.min_epochs or steps < self.min_steps

    def were_reached(self, epochs: int, steps: int, callbacks: dict[str, Any]) -> bool:
        """Return whether a run had reached its limits, by its checkpoint's steps and states."""
        if 0 < self.max_steps <= steps:
            return True
        if self.is_too_early(epochs, steps):
            return False
        self.load_state_dict(callbacks.get(self.state_key, {}))
        remaining = self.time_remaining()
        return remaining is not None and remaining <= 0

    def reached(self, trainer: L.Trainer, ask: bool = True) -> bool:
        """Return whether the training must end; the answer is the same in all processes.

        Args:
            trainer: The trainer.
            ask: Whether to check the time, too; for that, the processes have to communicate.
        """
        if 0 < self.max_steps <= trainer.global_step:
            return True
        remaining = self.time_remaining()
        if remaining is None or not ask:
            return False
        if self.is_too_early(epochs_processed(trainer), trainer.global_step):
            return False
        return trainer.strategy.reduce_boolean_decision(remaining <= 0, all=False)

    def on_fit_start(self, trainer: L.Trainer, *args: object, **kwargs: object) -> None:
        """Do nothing; Lightning's timer would end the training before its last epoch has ended."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        within_a_step = batch_idx % trainer.accumulate_grad_batches != 0
        # For Lightning, an epoch without a batch counts as finished.
        if not batch_idx or within_a_step:
            return
        if self.reached(trainer, may_communicate(trainer, self.every_n_steps)):
            raise StopIteration  # the epoch ends here, as if there were no more batches

    def on_train_batch_end(self, *args: object, **kwargs: object) -> None:
        """Do nothing, as :meth:`on_fit_start`."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.reached(trainer):
            trainer.should_stop = True
