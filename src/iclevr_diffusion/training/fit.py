"""Fit a module, from its run's newest good checkpoint if there is one."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.callbacks.early_stopping import EarlyStopping
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.distributed import together
from iclevr_diffusion.training.loggers import resume_logging
from iclevr_diffusion.training.resume import ResumePoint, is_finished
from iclevr_diffusion.utils.errors import TrainingError, UserError
from iclevr_diffusion.utils.files import NO_SPACE, reason
from iclevr_diffusion.utils.lightning_internals import (
    callbacks_of,
    overfits,
    profile_folder,
    started_processes,
    validate_at_least_one_batch,
)


def check_limits(trainer: L.Trainer, batches: tuple[int, int]) -> None:
    """Check that the trainer's limits leave at least one batch per epoch.

    ``overfit_batches`` limits validation, too, but to no less than one batch.

    Args:
        trainer: The trainer.
        batches: Batches per epoch, in training and in validation, before the limits.

    Raises:
        UserError: None is left, or ``val_check_interval`` is larger than the number of batches.
    """
    training, validation = batches
    overfit = overfits(trainer)
    name = "overfit_batches" if overfit else "limit_train_batches"
    training = _limited(name, trainer.limit_train_batches, training, "an epoch")
    if overfit:
        validate_at_least_one_batch(trainer, validation)
    _limited("limit_val_batches", trainer.limit_val_batches, validation, "validation")
    every = trainer.val_check_interval
    if isinstance(every, int) and every > training and trainer.limit_val_batches:
        raise UserError(
            f"trainer.val_check_interval={every} is more than the {training} batches of an epoch;"
            " for validation every few epochs use trainer.check_val_every_n_epoch"
        )


def _limited(name: str, limit: int | float, batches: int, what: str) -> int:
    """Return the number of batches that a limit leaves: an int is a number, a float a share.

    Raises:
        UserError: None is left, although the limit is not 0.
    """
    left = min(limit, batches) if isinstance(limit, int) else int(limit * batches)
    if limit and batches and not left:
        raise UserError(
            f"trainer.{name}={limit} is less than one of the {batches} batches of {what}; use a"
            " whole number of batches, such as 1, or a larger share"
        )
    return left


def fit(
    trainer: L.Trainer,
    module: TrainedModule,
    datamodule: L.LightningDataModule,
    resumed: ResumePoint | None,
    hyperparameters: dict[str, Any],
    figures: Path,
) -> float | None:
    """Train, unless the run was finished before.

    Args:
        trainer, module, datamodule: The parts of the training.
        resumed: Checkpoint to resume from; None to start.
        hyperparameters: Settings for the loggers.
        figures: The JSON file with the run's results; its ``steps`` tell whether they are current.

    Returns:
        The training time of this process in seconds; None if the run was finished and has its
        results, which is printed.

    Raises:
        TrainingError: The training cannot continue: the disk is full, or a number is NaN.
        Stopped: A signal ended it.
    """
    resume_logging(trainer.loggers, 0 if resumed is None else resumed.steps)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters)
    if resumed is not None and is_finished(trainer, resumed):
        if not _is_reported(figures, resumed):
            return 0.0
        if trainer.is_global_zero:
            advice = how_to_continue(trainer) if module.can_train_longer else ""
            print(f"this run is finished: {resumed.steps} steps{advice}")
        return None
    start = time.perf_counter()
    path = None if resumed is None else resumed.path
    try:
        with together(lambda: started_processes(trainer)), deferred_signals(trainer):
            trainer.fit(module, datamodule, ckpt_path=path, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except OSError as error:
        room = "; free some space, and continue with resume=true" if error.errno in NO_SPACE else ""
        raise TrainingError(f"{error.filename or 'a file'}: {reason(error)}{room}") from error
    seconds = time.perf_counter() - start
    print_profiles(trainer)
    return seconds


def how_to_continue(trainer: L.Trainer) -> str:
    """Name the settings that let a finished run train longer."""
    limits = "max_steps, max_time"
    if callbacks_of(trainer, EarlyStopping):
        limits += ", callbacks.early_stopping.patience"
    return f"; raise trainer.max_epochs (or {limits}) to continue"


def print_profiles(trainer: L.Trainer) -> None:
    """Print the files of the profiler, if there is one."""
    profiles = profile_folder(trainer)
    if profiles is not None and trainer.is_global_zero:
        for file in sorted(Path(profiles).iterdir()):
            print(f"profile: {os.path.relpath(file)}")


@contextmanager
def deferred_signals(trainer: L.Trainer) -> Iterator[None]:
    """Defer signals to the hooks of the training for the duration of the context.

    A single process ends at once while the data is set up; several must end together.

    Raises:
        Stopped: A signal was received after the last hook.
    """
    callbacks = callbacks_of(trainer, StopOnSignal)
    for callback in callbacks:
        callback.in_fit = trainer.world_size > 1
    try:
        yield
    finally:
        for callback in callbacks:
            callback.in_fit = False
    for callback in callbacks:
        callback.end_if_signalled()


def _is_reported(figures: Path, resumed: ResumePoint) -> bool:
    """Return whether the results of a run are those of its last checkpoint."""
    try:
        return bool(json.loads(figures.read_text("utf-8"))["steps"] == resumed.steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # they will be written again
