"""Resume a run from its newest good checkpoint."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.callbacks.early_stopping import EarlyStopping
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.launchers import check_same
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import is_intact
from iclevr_diffusion.utils.lightning_internals import callbacks_of
from iclevr_diffusion.utils.nested import flatten
from iclevr_diffusion.utils.text import one_line

MAX_SHOWN = 60  # characters of a setting's value

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint to resume from; its tensors are only read when they are used."""

    path: Path
    content: dict[str, Any]

    @property
    def steps(self) -> int:
        return int(self.content["progress"]["steps"])


def find_checkpoint(folder: Path, settings: dict[str, Any], processes: int) -> ResumePoint | None:
    """Return the newest good checkpoint of a run; None if it has none yet.

    Raises:
        UserError: All checkpoints are damaged, or the settings do not match, or the processes of a
            launcher do not see the same files.
    """
    found = _newest_good(folder, settings, processes)
    steps = f"{found.steps} steps" if found else "no checkpoint"
    check_same(f"resume: {folder}", steps, "the folder must be on a disk that all nodes share")
    return found


def _newest_good(folder: Path, settings: dict[str, Any], processes: int) -> ResumePoint | None:
    read_metrics(folder / "metrics.csv")  # check it now; it is read again when the run starts
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
            damaged.append(UserError(f"{path} is not a checkpoint to resume from"))
    # Not by their age: a copy of a folder has other times.
    for _, path, content in sorted(readable, key=lambda entry: entry[0], reverse=True):
        try:
            _check_bytes(path)
        except UserError as error:
            damaged.append(error)
            continue
        check_settings(path, content, settings | {"processes": processes})
        found = ResumePoint(path, content)
        for problem in damaged:
            log.warning("%s; resuming from %s, step %d", problem, path.name, found.steps)
        return found
    if damaged:
        raise UserError(f"resume: {damaged[0]}; there is no other one to resume from")
    return None


def _check_bytes(path: Path) -> None:
    """Check all bytes of a checkpoint by its checksum.

    Raises:
        UserError: It is damaged.
    """
    try:
        intact = is_intact(path)
    except Exception as error:  # whatever a damaged archive raises
        raise UserError(f"{path} is damaged: {error}") from error
    if not intact:
        raise UserError(f"{path} is damaged")


def check_settings(path: Path, content: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that a checkpoint belongs to a run with these settings.

    ``batch_size`` and ``processes`` may differ if a step has as many frames as before. Or
    ``processes`` alone may differ at the start of an epoch, or where the number of frames seen in
    the epoch is a whole number of the new steps.

    Raises:
        UserError: It does not; the message names the setting and both values.
    """
    advice = "leave it as it was, or start without resume"
    old = content["settings"]
    now, before = _flat(settings), _flat(old)
    for name in now | before:
        value, was = now.get(name), before.get(name)
        if value != was and name not in ("batch_size", "processes"):
            raise UserError(
                f"resume: {path} was trained with {name}={one_line(was, MAX_SHOWN)}, not"
                f" {one_line(value, MAX_SHOWN)}; {advice}"
            )
    if "batch_sizes" in old and settings["processes"] != old["processes"]:
        raise UserError(
            f"resume: {path} was trained by {old['processes']} processes, not"
            f" {settings['processes']}, and each divides its own batches; {advice}"
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
    frames_of_step = frames * settings.get("accumulate_grad_batches", 1)
    if not is_at_epoch_start(content) and batches * frames_before % frames_of_step:
        raise UserError(
            f"resume: {path} was saved within an epoch, after {batches} batches of {frames_before}"
            f" frames; resume it with {old['processes']} processes, not {settings['processes']}"
        )


def is_at_epoch_start(content: dict[str, Any]) -> bool:
    """Return whether a checkpoint was written after a whole epoch."""
    progress = content["progress"]
    return bool(progress["epoch_ended"] and progress["batches"] == progress["batches_per_epoch"])


def is_finished(trainer: L.Trainer, resumed: ResumePoint) -> bool:
    """Return whether a run was finished, by epochs, steps, time or early stopping."""
    progress, states = resumed.content["progress"], resumed.content["callbacks"]
    if not progress["epoch_ended"]:
        return False
    epochs = progress["epoch"] + is_at_epoch_start(resumed.content)
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        return True
    if any(callback.has_stopped(states) for callback in callbacks_of(trainer, EarlyStopping)):
        return True
    return any(
        callback.were_reached(epochs, resumed.steps, states)
        for callback in callbacks_of(trainer, Limits)
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names; an empty group counts as none."""
    return {name: value for name, value in flatten(settings).items() if value != {}}
