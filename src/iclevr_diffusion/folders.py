"""The folders of runs and of sweeps: new ones, those to go on in, and those that stay empty."""

import functools
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf

from iclevr_diffusion.cluster import agreed, is_first, restarts, slurm_job, torchrun_id
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.files import CONFIG
from iclevr_diffusion.status import read_status

SWEEP = "multirun.yaml"  # Hydra's, in the folder of a sweep


@functools.cache
def new_or_latest(parent: str, resume: bool | str) -> str:
    """The run folder for a command: a new one, or with ``resume`` the one to go on in.

    A new one is named by the time, and made here, so that no other run takes it. Under SLURM it is
    named by the job, so that all its processes, and the job when it is queued again, have the same.
    Under torchrun the first process tells the others; so it does when torchrun starts them again.

    Args:
        parent: where the runs of this experiment, or the sweeps, lie.
        resume: false for a new folder; true for the newest one in which a run, or a sweep, has
            begun; a path for that.

    Raises:
        UserError: there is nothing to resume, or this SLURM job has a run there already.
    """
    # Tasks of SLURM know the job's name, each by itself.
    return agreed(f"{parent} {resume}", lambda: _new_or_latest(parent, resume))


def _new_or_latest(parent: str, resume: bool | str) -> str:
    if was_restarted() and (earlier := _folder_before_restart(Path(parent))):
        return str(earlier)
    if resume is False:
        job = slurm_job()
        return new_folder(parent) if job is None else _folder_of(job, Path(parent))
    if resume is not True:
        if not _has_begun(Path(resume)):
            raise UserError(f"resume={resume}: no run has begun in that folder")
        return resume
    runs = [path for path in Path(parent).glob("*") if _has_begun(path)]
    if not runs:
        raise UserError(f"resume=true: no run in {parent} has begun; start without it")
    return str(max(runs, key=_last_start))


def was_restarted() -> bool:
    """Whether SLURM has queued this command again, or torchrun has started it again."""
    return restarts() > 0


@functools.cache
def new_folder(parent: str) -> str:
    """A folder that no other process has, named by the time, made here; one a program."""
    while True:
        folder = Path(parent) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return str(folder)


def remove_if_empty(folder: Path) -> None:
    """Remove a run folder that nothing was written to, and the folders around it if it was alone.

    Hydra makes it before anything has been checked.
    """
    with suppress(OSError):  # it is not empty, or it is the working folder
        while folder.resolve() != Path.cwd():
            folder.rmdir()
            folder = folder.parent


def _folder_of(job: str, parent: Path) -> str:
    folder = parent / job
    if _has_begun(folder) and is_first() and not was_restarted():
        raise UserError(
            f"{folder}: this SLURM job has trained there already; go on with resume=true, give the"
            " second run a name=… of its own, or start it with srun"
        )
    return str(folder)


def _folder_before_restart(parent: Path) -> Path | None:
    """The folder in which this command began before SLURM or torchrun started it again."""
    job = slurm_job()
    if job is not None and _has_begun(parent / job):
        return parent / job
    launcher = torchrun_id()
    runs = [path for path in parent.glob("*") if launcher and _has_begun(path)]
    ours = [path for path in runs if read_status(path).get("launcher") == launcher]
    return max(ours, key=_last_start, default=None)


def _has_begun(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, SWEEP))


def _last_start(folder: Path) -> float:
    files = [folder / name for name in (CONFIG, SWEEP)]
    return max(file.stat().st_mtime for file in files if file.is_file())


# Hydra hands the cache on to the jobs of a sweep: in other processes, too, they have its folder.
OmegaConf.register_new_resolver("run_folder", new_or_latest, use_cache=True, replace=True)
