"""The folders of runs and of sweeps: new ones, those to go on in, and those that stay empty."""

import functools
import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.training.launchers import agreed, is_first, restarts, slurm_job, torchrun_id
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, SUMMARY, expand_home, reason
from iclevr_diffusion.utils.status import STATUS, read_status

SWEEP = "multirun.yaml"  # Hydra's, in the folder of a sweep
# Everything that a run or a sweep writes into its folder, as patterns; but for the lock, which
# changes nothing where there is one.
WRITTEN = (
    CONFIG,
    SWEEP,
    STATUS,
    SUMMARY,
    "metrics.csv",
    "output.log",
    "checkpoints",
    "images",
    "weights",
    "tensorboard",
    "wandb",
    "evaluator.json",
    "evaluator.safetensors",
    "mistakes_*.png",
    "optimization_results.yaml",
    ".stop",
    ".submitit",
)
_made: set[Path] = set()  # by this process


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
    parent = expand_home(parent)
    if isinstance(resume, str):
        resume = expand_home(resume)
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


def is_resumed(cfg: DictConfig) -> bool:
    """Whether a run goes on from its checkpoint: asked for, or it was started again."""
    return cfg.get("resume", False) is not False or was_restarted()


def was_restarted() -> bool:
    """Whether SLURM has queued this command again, or torchrun has started it again."""
    return restarts() > 0


@functools.cache
def new_folder(parent: str) -> str:
    """A folder that no other process has, named by the time, made here; one a program.

    Raises:
        UserError: it cannot be made.
    """
    while True:
        try:
            make_folder(Path(parent))
        except OSError as error:
            raise UserError(f"{parent}: cannot write there: {reason(error)}") from error
        folder = Path(parent) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        # Not found: another command has removed the parent, which was empty.
        with suppress(FileExistsError, FileNotFoundError):
            folder.mkdir()
            _made.add(_absolute(folder))
            return str(folder)


def make_folder(folder: Path) -> None:
    """Make a folder, and those around it, where they are missing; see :func:`remove_if_empty`."""
    path = _absolute(folder)
    missing = [place for place in (path, *path.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made.update(missing)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that this process made and that nothing was written to.

    The folders around it go as well, where they were made for it and hold nothing else.
    """
    folder = _absolute(folder)
    with suppress(OSError):  # it is not empty
        while folder in _made:
            folder.rmdir()
            folder = folder.parent


def remove_empty_below(folder: Path, top: Path) -> None:
    """Remove an empty folder and the empty ones around it, up to ``top``, which stays."""
    with suppress(OSError):  # it is not empty
        while top in folder.parents:
            folder.rmdir()
            folder = folder.parent


def refuse_taken(folder: Path, written: Iterable[str] = WRITTEN) -> None:
    """Refuse a folder in which files would be overwritten.

    Args:
        written: patterns of the names that are going to be written there.

    Raises:
        UserError: something of such a name is there already; an empty folder does not count.
    """
    if not folder.is_dir():
        return
    for name in sorted(path.name for path in folder.iterdir()):
        if any(fnmatch(name, pattern) for pattern in written) and not _is_empty(folder / name):
            advice = "name another folder"
            if WRITTEN is written and _has_begun(folder):
                advice = f"go on there with resume={folder}, or name another folder"
            raise UserError(f"{folder}: {name} is there already and is not overwritten; {advice}")


def check_run_folder(folder: Path, resume: object) -> None:
    """Check that a run may write to the folder that Hydra is about to make.

    Args:
        folder: the run's, whoever named it.
        resume: the setting.

    Raises:
        UserError: there is a run already, or other files that it would overwrite; or a run that
            goes on has not begun there.
    """
    if was_restarted() or not is_first():
        return
    if resume is False:
        refuse_taken(folder)
        return
    if not _has_begun(folder):
        raise UserError(f"resume={resume}: no run has begun in {folder}")
    if isinstance(resume, str):
        named = Path(expand_home(resume))
        if not named.exists() or not folder.samefile(named):
            raise UserError(
                f"resume={resume} and the run folder {folder} differ; leave out hydra.run.dir=…"
            )


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
    """Whether a run or a sweep has begun; another program's config.yaml is none."""
    if (folder / SWEEP).is_file():
        return True
    beside = (STATUS, "checkpoints", "metrics.csv")
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in beside)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _absolute(path: Path) -> Path:
    """The path without ``..``, links kept."""
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute() keeps ".."


def _last_start(folder: Path) -> float:
    files = [folder / name for name in (CONFIG, SWEEP)]
    return max(file.stat().st_mtime for file in files if file.is_file())


def run_name(name: str, fast_dev_run: bool | int) -> str:
    """The name of the folder that a run's folder is made in: quick checks have one of their own."""
    return "debug" if fast_dev_run else name


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
# Hydra hands the cache on to the jobs of a sweep: in other processes, too, they have its folder.
OmegaConf.register_new_resolver("run_folder", new_or_latest, use_cache=True, replace=True)
