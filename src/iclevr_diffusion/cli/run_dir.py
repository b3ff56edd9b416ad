"""The folders of runs and sweeps: choose, create and check them, and remove empty ones."""

import functools
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.training.launchers import agreed, is_first, restarts, slurm_job, torchrun_id
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, SUMMARY, expand_home, reason
from iclevr_diffusion.utils.folders import make_folder, make_new_folder
from iclevr_diffusion.utils.status import STATUS, read_status
from iclevr_diffusion.utils.text import one_line

SWEEP = "multirun.yaml"  # Hydra's, in the folder of a sweep
# Patterns of everything that a run or a sweep writes into its folder, except for the lock, which
# overwrites nothing.
WRITTEN = (
    CONFIG,
    SWEEP,
    STATUS,
    SUMMARY,
    "metrics.csv",
    "output.log",
    "checkpoints",
    "ema_snapshots",
    "images",
    "weights",
    "tensorboard",
    "wandb",
    "mlflow_run_id",
    "comet",
    "evaluator.json",
    "evaluator.safetensors",
    "mistakes_*.png",
    "optimization_results.yaml",
    ".stop",
    ".submitit",
)


@functools.cache
def new_or_latest(parent: str, resume: bool | str) -> str:
    """Return the run folder of a command: a new one, or with ``resume`` that of the resumed run.

    A new folder is named after the time and created at once, so that no other run takes it. Under
    SLURM it is named after the job, so that all processes of the job, also when it is queued again,
    share it. Under torchrun the first process announces it to the others, also after a restart.

    Args:
        parent: The folder of this experiment's runs, or of the sweeps.
        resume: False for a new folder; True for the newest one in which a run or a sweep has begun;
            or the path of one.

    Raises:
        UserError: There is nothing to resume, or this SLURM job already has a run there.
    """
    parent = expand_home(parent)
    if isinstance(resume, str):
        resume = expand_home(resume)
    # Every SLURM task knows the name of the job.
    return agreed(f"{parent} {resume}", lambda: _new_or_latest(parent, resume))


def _new_or_latest(parent: str, resume: bool | str) -> str:
    if was_restarted() and (earlier := _folder_before_restart(Path(parent))):
        return str(earlier)
    if resume is False:
        job = slurm_job()
        return new_folder(parent) if job is None else _folder_of(job, Path(parent))
    if resume is not True:
        if not isinstance(resume, str):
            raise UserError(f"resume must be true, false or a path, got {one_line(resume)}")
        if not has_begun(Path(resume)):
            run = next((path for path in Path(resume).parents if has_begun(path)), None)
            advice = f"resume={run}" if run else "resume=true, the newest run"
            raise UserError(f"resume={resume}: no run has begun in that folder; try {advice}")
        return resume
    runs = [path for path in Path(parent).glob("*") if has_begun(path)]
    if not runs:
        raise UserError(f"resume=true: no run in {parent} has begun; start one without resume")
    return str(max(runs, key=_last_start))


def is_resumed(cfg: DictConfig) -> bool:
    """Return whether a run resumes from its checkpoint: on request, or after a restart."""
    return cfg.get("resume", False) is not False or was_restarted()


def was_restarted() -> bool:
    """Return whether SLURM has requeued this command, or torchrun has restarted it."""
    return restarts() > 0


@functools.cache
def new_folder(parent: str) -> str:
    """Create and return a folder named after the time; one per program.

    Raises:
        UserError: It cannot be created.
    """
    while True:
        try:
            make_folder(Path(parent))
        except OSError as error:
            raise UserError(f"{parent}: cannot write there: {reason(error)}") from error
        folder = Path(parent) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        # Not found: another command has removed the parent, which was empty.
        with suppress(FileExistsError, FileNotFoundError):
            make_new_folder(folder)
            return str(folder)


def remove_empty_below(folder: Path, top: Path) -> None:
    """Remove an empty folder and its empty parents below ``top``."""
    with suppress(OSError):  # it is not empty
        while top in folder.parents:
            folder.rmdir()
            folder = folder.parent


def refuse_taken(folder: Path, written: Iterable[str] = WRITTEN) -> None:
    """Refuse a folder with files that would be overwritten.

    Args:
        folder: The folder.
        written: Patterns of the names of these files.

    Raises:
        UserError: There is such a file, or a folder of such a name that is not empty; or the folder
            is among the files of another run, which may replace it.
    """
    whole = folder.resolve()
    for run in filter(has_begun, whole.parents):
        if any(fnmatch(whole.relative_to(run).parts[0], pattern) for pattern in WRITTEN):
            raise UserError(f"{folder} is among the files of the run {run}; name another folder")
    if not folder.is_dir():
        return
    for name in sorted(path.name for path in folder.iterdir()):
        if any(fnmatch(name, pattern) for pattern in written) and not _is_empty(folder / name):
            advice = "name another folder"
            if WRITTEN is written and has_begun(folder):
                advice = f"resume it with resume={folder}, or name another folder"
            raise UserError(f"{folder}: {name} already exists and is not overwritten; {advice}")


def check_run_folder(folder: Path, resume: object) -> None:
    """Check that a run may write to the folder that Hydra is about to create.

    Raises:
        UserError: There is a run already, or files would be overwritten; or the run to resume has
            not begun there.
    """
    if was_restarted() or not is_first():
        return
    if resume is False:
        refuse_taken(folder)
        return
    if not has_begun(folder):
        raise UserError(f"resume={resume}: no run has begun in {folder}")
    if isinstance(resume, str):
        named = Path(expand_home(resume))
        if not named.exists() or not folder.samefile(named):
            raise UserError(
                f"resume={resume} and the run folder {folder} differ; leave out hydra.run.dir=…"
            )


def _folder_of(job: str, parent: Path) -> str:
    folder = parent / job
    if has_begun(folder) and is_first() and not was_restarted():
        raise UserError(
            f"{folder}: this SLURM job has trained there already; resume it with resume=true,"
            " give the second run another name=…, or start it with srun"
        )
    return str(folder)


def _folder_before_restart(parent: Path) -> Path | None:
    """Return the folder in which this command began before SLURM or torchrun restarted it."""
    job = slurm_job()
    if job is not None and has_begun(parent / job):
        return parent / job
    launcher = torchrun_id()
    runs = [path for path in parent.glob("*") if launcher and has_begun(path)]
    ours = [path for path in runs if read_status(path).get("launcher") == launcher]
    return max(ours, key=_last_start, default=None)


def has_begun(folder: Path) -> bool:
    """Return whether a run or a sweep of this project has begun in a folder."""
    if (folder / SWEEP).is_file():
        return True
    beside = (STATUS, "checkpoints", "metrics.csv")
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in beside)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _last_start(folder: Path) -> float:
    files = [folder / name for name in (CONFIG, SWEEP)]
    return max(file.stat().st_mtime for file in files if file.is_file())


def run_name(name: str, fast_dev_run: bool | int) -> str:
    """Return the name of the folder of the runs; ``fast_dev_run`` has a separate one."""
    return "debug" if fast_dev_run else name


OmegaConf.register_new_resolver("run_name", run_name, replace=True)
# Hydra passes the cache on to the jobs of a sweep, also in other processes.
OmegaConf.register_new_resolver("run_folder", new_or_latest, use_cache=True, replace=True)
