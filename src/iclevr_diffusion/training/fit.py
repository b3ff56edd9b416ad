"""Fit a module, from its run's newest good checkpoint where there is one."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from iclevr_diffusion.diffusion.io import read_checkpoint
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.callbacks.lookup import callbacks_of
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.distributed import together
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.launchers import check_same
from iclevr_diffusion.training.loggers import read_metrics, resume_logging
from iclevr_diffusion.utils.errors import TrainingError, UserError
from iclevr_diffusion.utils.files import NO_SPACE, is_intact, reason

SHOWN = 60  # characters of a setting's value

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from.

    path: the file.
    content: what is in it; its tensors are read when they are used.
    """

    path: Path
    content: dict[str, Any]

    @property
    def steps(self) -> int:
        return int(self.content["progress"]["steps"])


def find_checkpoint(folder: Path, settings: dict[str, Any], processes: int) -> Resumed | None:
    """The newest good checkpoint of a run; None where it has not got to its first.

    Args:
        folder: the run's.
        settings, processes: of the run that goes on; see :func:`compare`.

    Raises:
        UserError: all checkpoints are damaged, or the run was another one, or the processes of a
            launcher do not see the same files.
    """
    found = _newest_good(folder, settings, processes)
    steps = f"{found.steps} steps" if found else "no checkpoint"
    check_same(f"resume: {folder}", steps, "its folder has to lie on a disk that all nodes share")
    return found


def _newest_good(folder: Path, settings: dict[str, Any], processes: int) -> Resumed | None:
    read_metrics(folder / "metrics.csv")  # is read again when the run begins
    readable, damaged = [], []
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        try:
            content = read_checkpoint(path)
            progress = content["progress"]
            order = (progress["steps"], progress["epoch_ended"], path.name == LAST)
            readable.append((order, path, content))
        except UserError as error:
            damaged.append(error)
        except KeyError:
            damaged.append(UserError(f"{path} was not made for going on"))
    # Not by their age: a copied folder's files have that of the copy.
    for _, path, content in sorted(readable, key=lambda entry: entry[0], reverse=True):
        try:
            _check_bytes(path)
        except UserError as error:
            damaged.append(error)
            continue
        compare(path, content, settings | {"processes": processes})
        found = Resumed(path, content)
        for problem in damaged:
            log.warning("%s; going on from %s, step %d", problem, path.name, found.steps)
        return found
    if damaged:
        raise UserError(f"resume: {damaged[0]}; there is no good one to go on from")
    return None


def _check_bytes(path: Path) -> None:
    """Check every byte of a checkpoint against the sum in it.

    Raises:
        UserError: it is damaged.
    """
    try:
        intact = is_intact(path)
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise UserError(f"{path} is damaged: {error}") from error
    if not intact:
        raise UserError(f"{path} is damaged")


def compare(path: Path, content: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that a checkpoint is of a run with these settings.

    ``batch_size`` and ``processes`` may differ: where a step sees as many frames as before; or,
    with another number of processes, where an epoch begins or the frames that it has behind it are
    a whole number of the new steps.

    Raises:
        UserError: it is not; the message names the setting and both values.
    """
    advice = "leave that as it was, or start without resume"
    old = content["settings"]
    now, before = _flat(settings), _flat(old)
    for name in now | before:
        value, was = now.get(name), before.get(name)
        if value != was and name not in ("batch_size", "processes"):
            raise UserError(
                f"resume: {path} was trained with {name}={_short(was)}, not {_short(value)};"
                f" {advice}"
            )
    if "batch_sizes" in old and settings["processes"] != old["processes"]:
        raise UserError(
            f"resume: {path} was trained by {old['processes']} processes, not"
            f" {settings['processes']}, and each cuts its own batches; {advice}"
        )
    frames, frames_before = (s["batch_size"] * s["processes"] for s in (settings, old))
    if frames == frames_before:
        return
    if settings["batch_size"] != old["batch_size"]:
        raise UserError(
            f"resume: {path} was trained with data.batch_size={old['batch_size']}, not"
            f" {settings['batch_size']}; {advice}, or keep its product with trainer.devices"
        )
    batches = content["progress"]["batches"]
    if not at_an_epochs_start(content) and batches * frames_before % frames:
        raise UserError(
            f"resume: {path} stands within an epoch, after {batches} times {frames_before} frames;"
            f" {settings['processes']} processes cannot go on there, but {old['processes']} can"
        )


def at_an_epochs_start(content: dict[str, Any]) -> bool:
    progress = content["progress"]
    return bool(progress["epoch_ended"] and progress["batches"] == progress["batches_per_epoch"])


def check_limits(trainer: L.Trainer, batches: tuple[int, int]) -> None:
    """Check that the trainer's limits leave a batch of an epoch.

    The share of ``overfit_batches`` counts for validation, too, where it is one batch at least.

    Args:
        batches: of an epoch, of training and of validation, before the limits.

    Raises:
        UserError: less than one is left, or ``val_check_interval`` is more than there are.
    """
    training, validation = batches
    overfit = bool(trainer.overfit_batches)  # type: ignore[attr-defined]
    name = "overfit_batches" if overfit else "limit_train_batches"
    training = _limited(name, trainer.limit_train_batches, training, "an epoch")
    if overfit and trainer.limit_val_batches * validation < 1:
        trainer.limit_val_batches = 1
    _limited("limit_val_batches", trainer.limit_val_batches, validation, "validation")
    every = trainer.val_check_interval
    if isinstance(every, int) and every > training and trainer.limit_val_batches:
        raise UserError(
            f"trainer.val_check_interval={every} is more than the {training} batches of an epoch;"
            " for validation every few epochs use trainer.check_val_every_n_epoch"
        )


def _limited(name: str, limit: int | float, batches: int, what: str) -> int:
    """How many batches a limit leaves: a whole number counts them, a fraction is a share of all.

    Raises:
        UserError: none, but the limit is not 0.
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
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    resumed: Resumed | None,
    hyperparameters: dict[str, Any],
    figures: Path,
) -> float | None:
    """Train, unless the run had come to its end.

    Args:
        resumed: where to go on; None to begin.
        hyperparameters: for the loggers.
        figures: the JSON file that the run ends with; ``steps`` in it says how far it had come.

    Returns:
        The seconds that this process trained for; None where the figures are there already, which
        is said.

    Raises:
        TrainingError: the training cannot go on: a full disk, a number that is not finite.
        Stopped: a signal ended it.
    """
    resume_logging(trainer.loggers, 0 if resumed is None else resumed.steps)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters)
    if resumed is not None and is_finished(trainer, resumed):
        if not _is_reported(figures, resumed):
            return 0.0
        if trainer.is_global_zero:
            more = "; raise trainer.max_epochs (or max_steps, max_time) to go on"
            if isinstance(module, GANModule):  # its batches go by the epochs, which have to stay
                more = ""
            print(f"this run is finished: {resumed.steps} steps{more}")
        return None
    start = time.perf_counter()
    launcher = trainer.strategy.launcher
    path = None if resumed is None else resumed.path
    try:
        with together(lambda: getattr(launcher, "procs", [])), signals_wait(trainer):
            trainer.fit(module, datamodule, ckpt_path=path, weights_only=True)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except OSError as error:
        room = "; make room, and go on with resume=true" if error.errno in NO_SPACE else ""
        raise TrainingError(f"{error.filename or 'a file'}: {reason(error)}{room}") from error
    seconds = time.perf_counter() - start
    profiles = trainer.profiler.dirpath  # type: ignore[attr-defined]
    if profiles is not None and trainer.is_global_zero:
        for file in sorted(Path(profiles).iterdir()):
            print(f"profile: {os.path.relpath(file)}")
    return seconds


@contextmanager
def signals_wait(trainer: L.Trainer) -> Iterator[None]:
    """Inside, signals wait for the hooks of the training.

    Raises:
        Stopped: one came after the last of these.
    """
    callbacks = list(callbacks_of(trainer, StopOnSignal))
    for callback in callbacks:
        callback.in_fit = True
    try:
        yield
    finally:
        for callback in callbacks:
            callback.in_fit = False
    for callback in callbacks:
        callback.end_if_signalled()


def is_finished(trainer: L.Trainer, resumed: Resumed) -> bool:
    """Whether the run of a checkpoint had come to its end, by epochs, steps or time."""
    progress = resumed.content["progress"]
    if not progress["epoch_ended"]:
        return False
    epochs = progress["epoch"] + at_an_epochs_start(resumed.content)
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        return True
    return any(
        callback.were_reached(epochs, resumed.steps, resumed.content["callbacks"])
        for callback in callbacks_of(trainer, Limits)
    )


def _is_reported(figures: Path, resumed: Resumed) -> bool:
    """Whether a run's figures are those of its last checkpoint."""
    try:
        return bool(json.loads(figures.read_text("utf-8"))["steps"] == resumed.steps)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # they are written again


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
