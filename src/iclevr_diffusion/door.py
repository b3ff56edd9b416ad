"""What all doors share: Hydra's composition, run folders, and how errors end."""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.files import CONFIG, reason
from iclevr_diffusion.settings import check_settings

PACKAGED_CONF = Path(__file__).parent / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else Path(__file__).parents[2] / "conf"
DEBUG_FLAG = "--debug"
SWEEP_FLAGS = ("-m", "--multirun")
FULL_ERROR = "HYDRA_FULL_ERROR"
INSIDE = "ICLEVR_DIFFUSION_DOOR"
ENDS_WITH_A_LINE = (
    UserError,
    TrainingError,
    Stopped,
    HydraException,
    OmegaConfBaseException,
    OSError,
    KeyboardInterrupt,
)
SWEEP = "multirun.yaml"  # Hydra's, in the folder of a sweep


def door(
    config_name: str, schema: type
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of the composed config into a program; ``schema``: what is in that config.

    A user's mistake, or a file that cannot be read or written, ends it with one line and exit code
    2, a failed training with one line and exit code 1, a signal with one line and 128 plus its
    number; ``--debug`` or HYDRA_FULL_ERROR=1 shows the traceback. Other exceptions are bugs, and
    always show it. No empty folder stays behind.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            # Processes that this one starts inherit its environment: not what the user set.
            users = os.environ.get(FULL_ERROR) if INSIDE not in os.environ else None
            debug = DEBUG_FLAG in sys.argv or users == "1"
            program, *arguments = (word for word in sys.argv if word != DEBUG_FLAG)
            # Hydra's parser takes this flag before or after the overrides, but not among them.
            sys.argv[:] = [program, *sorted(arguments, key=lambda word: word not in SWEEP_FLAGS)]

            sweeps: set[Path] = set()
            codes: list[int] = []  # of the jobs of a sweep that failed

            @functools.wraps(task)
            def job(cfg: DictConfig) -> None:
                if in_a_sweep():
                    sweeps.add(Path(HydraConfig.get().sweep.dir))
                try:
                    check_settings(cfg, schema)
                    task(cfg)
                except ENDS_WITH_A_LINE as error:
                    _remove_if_empty(run_folder())
                    if debug or (in_a_sweep() and not runs_jobs_itself()):
                        raise
                    # One failed job does not stop the rest of a sweep; a signal is meant for all.
                    # Hydra would say less, and put a line of its own before ours.
                    if in_a_sweep() and not isinstance(error, Stopped | KeyboardInterrupt):
                        number, words = HydraConfig.get().job.num, HydraConfig.get().overrides.task
                        print(
                            f"error in job {number} ({' '.join(words)}): {one_line(error)}",
                            file=sys.stderr,
                        )
                        codes.append(_exit_code(error))
                        return
                    _end(error)

            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            # Hydra would print errors its own way and exit with 1; this makes it raise them.
            os.environ[FULL_ERROR] = os.environ[INSIDE] = "1"
            try:
                with ends_with_a_line(debug):
                    run(job)()
                if codes:
                    sys.exit(codes[0])
            finally:
                for folder in sweeps:
                    _remove_if_nothing_ran(folder)
                del os.environ[FULL_ERROR], os.environ[INSIDE]
                if users is not None:
                    os.environ[FULL_ERROR] = users

        return main

    return decorate


@contextmanager
def ends_with_a_line(debug: bool) -> Iterator[None]:
    """Inside, a mistake, a failure or a signal ends the program as :func:`door` says."""
    try:
        yield
    except ENDS_WITH_A_LINE as error:
        if debug:
            raise
        _end(error)


def _end(error: BaseException) -> NoReturn:
    """Say in one line what ended the program, and end it."""
    if isinstance(error, KeyboardInterrupt):
        error = Stopped("interrupted", signal.SIGINT)
    rank = os.environ.get("LOCAL_RANK", "0")
    process = "" if rank == "0" else f" in process {rank}"
    if isinstance(error, Stopped):
        if rank != "0":
            sys.exit(0)  # the first process speaks for all
        print(f"stopped: {one_line(error)}", file=sys.stderr, flush=True)
        sys.exit(128 + error.signum)
    print(f"error{process}: {one_line(error)}", file=sys.stderr, flush=True)
    sys.exit(_exit_code(error))


def _exit_code(error: BaseException) -> int:
    return 1 if isinstance(error, TrainingError) else 2


def _remove_if_empty(folder: Path) -> None:
    """Remove a run folder that nothing was written to, and the folders around it if it was alone.

    Hydra makes it before anything has been checked.
    """
    with suppress(OSError):  # it is not empty, or it is the working folder
        while folder.resolve() != Path.cwd():
            folder.rmdir()
            folder = folder.parent


def _remove_if_nothing_ran(sweep: Path) -> None:
    """Remove the folder of a sweep of which no job came as far as to write anything."""
    if [path.name for path in sweep.glob("*")] == [SWEEP]:
        (sweep / SWEEP).unlink()
        _remove_if_empty(sweep)


def one_line(error: BaseException) -> str:
    """The message of an error, in one line, without Hydra's and OmegaConf's lists of places."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename or 'a file'}: {reason(error)}"
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, OSError):
        return one_line(error.__cause__)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{' '.join(str(error).split())} {one_line(error.__cause__)}"
    text = re.sub(
        r"\n\s*(full_key|object_type|reference_type|See https?://\S+)[^\n]*", "", str(error)
    )
    return " ".join(text.split()).removeprefix("UserError raised while resolving interpolation: ")


@contextmanager
def user_settings() -> Iterator[None]:
    """Inside, an object that refuses its settings counts as a mistake of the user.

    Raises:
        UserError: with the object's own words.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def run_folder() -> Path:
    """The folder of this run, which Hydra made."""
    return Path(HydraConfig.get().runtime.output_dir)


def in_a_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def runs_jobs_itself() -> bool:
    """Whether this process runs a sweep's jobs, one after the other: Hydra's basic launcher."""
    return HydraConfig.get().runtime.choices.get("hydra/launcher") == "basic"


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: it is one.
    """
    several = cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1
    if in_a_sweep() and runs_jobs_itself() and several:
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def refuse_sweep() -> None:
    """Refuse ``-m`` for a door whose outputs the jobs of a sweep would share.

    Raises:
        UserError: it is a sweep.
    """
    if in_a_sweep():
        raise UserError("this command takes no -m; give it lists, such as 'sampler.steps=[5,10]'")


@functools.cache
def new_or_latest(parent: str, resume: bool | str) -> str:
    """The run folder for a command: a new one, or with ``resume`` the one to go on in.

    A new one is named by the time, and made here, so that no other run takes it. Under SLURM it is
    named by the job, so that all its processes, and the job when it is queued again, have the same.

    Args:
        parent: where the runs of this experiment, or the sweeps, lie.
        resume: false for a new folder; true for the newest one in which a run, or a sweep, has
            begun; a path for that.

    Raises:
        UserError: there is nothing to resume, or this SLURM job has a run there already.
    """
    if resume is False:
        job = slurm_job()
        return new_folder(parent) if job is None else _folder_of(job, Path(parent))
    if was_requeued() and (job := slurm_job()) and _has_begun(Path(parent) / job):
        return str(Path(parent) / job)
    if resume is not True:
        if not _has_begun(Path(resume)):
            raise UserError(f"resume={resume}: no run has begun in that folder")
        return resume
    runs = [path for path in Path(parent).glob("*") if _has_begun(path)]
    if not runs:
        raise UserError(f"resume=true: no run in {parent} has begun; start without it")
    return str(max(runs, key=_last_start))


def goes_on(cfg: DictConfig) -> bool:
    """Whether a run goes on from its checkpoint: asked for, or SLURM has started its job again."""
    return cfg.resume is not False or was_requeued()


def slurm_job() -> str | None:
    """A name for this job of SLURM's, the same each time it is queued; None outside of SLURM."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    parts = [job, os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_STEP_ID")]
    return "_".join(["job", *(part for part in parts if part)])


def was_requeued() -> bool:
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _folder_of(job: str, parent: Path) -> str:
    folder = parent / job
    first = os.environ.get("SLURM_PROCID", "0") == "0"
    if _has_begun(folder) and first and not was_requeued():
        raise UserError(
            f"{folder}: this SLURM job has trained there already; go on with resume=true, give the"
            " second run a name=… of its own, or start it with srun"
        )
    return str(folder)


@functools.cache
def new_folder(parent: str) -> str:
    """A folder that no other process has, named by the time, made here; one a program."""
    while True:
        folder = Path(parent) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return str(folder)


def _has_begun(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, SWEEP))


def _last_start(folder: Path) -> float:
    files = [folder / name for name in (CONFIG, SWEEP)]
    return max(file.stat().st_mtime for file in files if file.is_file())


OmegaConf.register_new_resolver("run_folder", new_or_latest, replace=True)
