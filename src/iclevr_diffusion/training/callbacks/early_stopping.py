"""End a training when its scores no longer improve."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.callbacks.scoring import CHOICE, Scoring
from iclevr_diffusion.utils.checks import check_at_least, check_choice
from iclevr_diffusion.utils.lightning_internals import callbacks_of, epochs_processed

log = logging.getLogger(__name__)


class EarlyStopping(LightningEarlyStopping):
    """Ends the training once a score of the validation list has stopped improving.

    Scorings count, not epochs: with ``callbacks.scoring.every_n_epochs=10`` and a patience of 3,
    the training ends after 30 epochs without improvement. Test lists cannot be monitored: that
    would be training on them.

    Args:
        conditions: Condition lists by name; the callback is given them.
        monitor: ``score/validation``, the sum of accuracy and exact match that also chooses the
            best checkpoint; or ``score/validation/<metric>``.
        patience: Scorings without improvement.
        min_delta: Smallest change that counts as an improvement.

    Raises:
        ValueError: A setting is out of range, or there is no such score.
    """

    def __init__(
        self,
        conditions: Mapping[str, Sequence[LabelSet]],
        monitor: str = CHOICE,
        patience: int = 3,
        min_delta: float = 0.0,
    ) -> None:
        if CHOOSE_BY not in conditions:
            raise ValueError(f"early stopping needs the list {CHOOSE_BY}, which the data lacks")
        known = {f"{CHOICE}/{name}": metric for name, metric in METRICS.items()}
        check_choice("monitor", monitor, [CHOICE, *known])
        check_at_least("patience", patience, 1)
        check_at_least("min_delta", min_delta, 0)
        falls = monitor in known and known[monitor].higher_is_better is False
        super().__init__(
            monitor,
            min_delta,
            patience,
            verbose=False,
            mode="min" if falls else "max",
            strict=False,  # an evaluator may give no such metric
            check_on_train_epoch_end=True,
        )

    @property
    def state_key(self) -> str:
        return "EarlyStopping"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scored = (scoring.scored_epoch for scoring in callbacks_of(trainer, Scoring))
        if trainer.current_epoch not in scored:
            return
        done = epochs_processed(trainer), trainer.global_step
        if any(limits.is_too_early(*done) for limits in callbacks_of(trainer, Limits)):
            return
        super().on_train_epoch_end(trainer, pl_module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            log.info(
                "early stopping: %s has not improved on %.4f in %d scorings",
                self.monitor,
                float(self.best_score),
                self.wait_count,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a run, except for the patience, which may change."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def has_stopped(self, callbacks: Mapping[str, Any]) -> bool:
        """Return whether a run had been stopped, by the callback states of its checkpoint."""
        return bool(callbacks.get(self.state_key, {}).get("wait_count", 0) >= self.patience)
