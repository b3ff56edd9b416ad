"""Checkpoints from which a run resumes as if it had never stopped."""

import copy
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from iclevr_diffusion.data.types import Batch
from iclevr_diffusion.training.loggers import MetricsCSV
from iclevr_diffusion.utils.checks import check_at_least
from iclevr_diffusion.utils.errors import TrainingError
from iclevr_diffusion.utils.files import atomic_path, os_error, seal
from iclevr_diffusion.utils.lightning_internals import (
    LoopState,
    batches_completed,
    callbacks_of,
    loops_after_batch,
    loops_after_epoch,
    rescale_batches,
)
from iclevr_diffusion.utils.weights import load_pickle

BEST, LAST = "best.ckpt", "last.ckpt"


class Checkpoints(Checkpoint):
    """Keeps the newest checkpoint and, on request, one every few epochs.

    ``last.ckpt`` is written every ``every_n_epochs`` epochs, after the last epoch, and within
    epochs every ``every_n_steps`` optimizer steps. ``epoch_0010.ckpt`` and the like are kept.

    A checkpoint records only progress that was complete when it was written, whichever callback
    requested it. That is either a whole epoch with its validation and all callbacks, or a number of
    batches of an epoch, the last of which ended with an optimizer step. A resumed run repeats what
    came after. (Lightning saves its counters as they are, in the middle of a batch or at the end of
    an epoch, and skips the rest on resume.)

    Args:
        folder: Folder of the checkpoints.
        settings: Settings that must match on resume, ``batch_size`` among them.
        sampling: Default sampling settings of the networks in the checkpoints.
        every_n_epochs, every_n_steps, keep_every_n_epochs: 0 for never.

    Raises:
        ValueError: A number is negative.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        sampling: dict[str, Any] | None = None,
        every_n_epochs: int = 1,
        every_n_steps: int = 0,
        keep_every_n_epochs: int = 0,
    ) -> None:
        for name, value in (
            ("every_n_epochs", every_n_epochs),
            ("every_n_steps", every_n_steps),
            ("keep_every_n_epochs", keep_every_n_epochs),
        ):
            check_at_least(name, value, 0)
        self.folder = folder
        self.settings = settings
        self.sampling = sampling or {}
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.keep_every_n_epochs = keep_every_n_epochs
        self.newest: Path | None = None  # the last one that this run wrote, or resumed from
        self.frames_seen = 0  # by all processes, in all epochs
        self._progress: dict[str, Any] | None = None  # up to the last optimizer step
        self._loops: LoopState = {}  # the same, as the state of Lightning's loops
        self._step = self._saved_step = 0
        self.gradient_is_pending = False  # batches have been seen since the last optimizer step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = self._saved_step = trainer.global_step
        self.gradient_is_pending = False

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self.frames_seen += len(batch.images) * trainer.world_size
        self.gradient_is_pending = trainer.global_step == self._step
        if not self.gradient_is_pending:
            self._step = trainer.global_step
            self._note(trainer, batch_idx + 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Only now has the previous batch been logged.
        due = 0 < self.every_n_steps <= self._step - self._saved_step
        if due and not self.gradient_is_pending:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._progress is not None
        self._progress["epoch_ended"] = True
        if self._progress["batches"] == trainer.num_training_batches:
            self._loops = loops_after_epoch(trainer)
        epoch = trainer.current_epoch + 1
        if _divides(self.keep_every_n_epochs, epoch):
            self.save(trainer, f"epoch_{epoch:04d}.ckpt")
        if _divides(self.every_n_epochs, epoch) or is_last_epoch(trainer):
            self.save(trainer)

    def save(self, trainer: L.Trainer, name: str = LAST) -> None:
        """Write a checkpoint of the last optimizer step; all processes must call this.

        Raises:
            OSError: It cannot be written; the previous file is still there.
        """
        if self._progress is None:
            return  # nothing has happened yet
        save_logs(trainer)
        self._saved_step = self._step
        trainer.save_checkpoint(self.folder / name)
        self.newest = self.folder / name

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._progress is None:
            raise TrainingError("there is nothing to save before the first optimizer step")
        checkpoint["loops"]["fit_loop"] = copy.deepcopy(self._loops)
        checkpoint["progress"] = dict(self._progress)
        checkpoint["epoch"] = self._progress["epoch"]
        checkpoint["sampling"] = self.sampling
        checkpoint["settings"] = self.settings | {"processes": trainer.world_size}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._progress = dict(checkpoint["progress"])
        self.frames_seen = self._progress["frames_seen"]
        self._loops = checkpoint["loops"]["fit_loop"]
        self.newest = Path(str(trainer.ckpt_path))
        # With another number of processes or batch size, the same frames are other batches.
        before = checkpoint["settings"]
        frames_before = before["batch_size"] * before["processes"]
        frames = self.settings["batch_size"] * trainer.world_size
        if frames != frames_before and batches_completed(self._loops):
            self._progress["batches"] = rescale_batches(self._loops, frames_before, frames)

    def _note(self, trainer: L.Trainer, batches: int) -> None:
        """Record that so many batches of this epoch are complete, and nothing after them."""
        self._progress = {
            "epoch": trainer.current_epoch,
            "batches": batches,
            "batches_per_epoch": trainer.num_training_batches,
            "epoch_ended": False,
            "steps": trainer.global_step,
            "frames_seen": self.frames_seen,
        }
        self._loops = loops_after_batch(trainer, batches)


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically and durably, with a checksum."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        path = Path(path)
        try:
            with atomic_path(path) as partial, partial.open("w+b") as file:
                torch.save(checkpoint, file)
                seal(file)
        except RuntimeError as error:
            cause = os_error(error)  # torch wraps it
            if cause is None:
                raise
            cause.filename = str(path)
            raise cause from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return dict(load_pickle(Path(path)))

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def save_logs(trainer: L.Trainer) -> None:
    """Write everything logged so far, so that a resumed run has the rows up to its checkpoint."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            logger.flush()
        else:
            logger.save()


def is_last_epoch(trainer: L.Trainer) -> bool:
    """Return whether the epoch that is ending is the last one of the run."""
    epochs_done = (
        trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    )
    return epochs_done or trainer.should_stop


def newest_checkpoint(trainer: L.Trainer) -> Path | None:
    """Return the checkpoint to resume from if the run ended now."""
    return next((callback.newest for callback in callbacks_of(trainer, Checkpoints)), None)


def _divides(every: int, number: int) -> bool:
    return every > 0 and number % every == 0
