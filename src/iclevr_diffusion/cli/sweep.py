"""The command that runs a sweep: it begins it, tells its jobs to stop, and says what they did."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.cli.jobs import FOLDER, LOG, STOP
from iclevr_diffusion.cli.run_dir import (
    SWEEP,
    check_run_folder,
    is_resumed,
    make_folder,
    refuse_taken,
    remove_empty_below,
    remove_if_empty,
)
from iclevr_diffusion.training import launchers
from iclevr_diffusion.utils.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.utils.files import CONFIG, expand_home, write_text
from iclevr_diffusion.utils.status import STATUS, read_status

SUBMITIT = ".submitit"  # the launcher's pickles and logs, in the folder of the sweep
LAUNCHERS = ("joblib", "ray", "submitit")  # packages
NOT_INSTALLED = re.compile(
    r"Unknown plugin class : 'hydra_plugins\.hydra_(joblib|submitit|ray)_"
    r"|Could not find 'hydra/sweeper/(optuna)'"
)
NONE_FINISHED = "No trials are completed yet."  # what optuna says then


class Sweep:
    """A sweep that this process has begun.

    Its jobs stop at SIGTERM and Ctrl+C, with a checkpoint. Those in SLURM's queue stay there: the
    command only waits for them. Those of the basic launcher see to signals themselves.

    Args:
        folder: its own; with ``resume`` it holds jobs of an earlier command.
        launcher: the name of Hydra's launcher.
    """

    def __init__(self, folder: Path, launcher: str) -> None:
        self.folder = folder
        self.launcher = launcher
        self.signum: int | None = None
        self._found = {path.name for path in folder.glob("*")}
        self._before = self._stamps()
        (folder / STOP).unlink(missing_ok=True)
        signals = () if launcher == "basic" else (signal.SIGINT, signal.SIGTERM)
        self._handlers = {signum: signal.signal(signum, self._stop) for signum in signals}

    def end(self) -> list[dict[str, Any]]:
        """Give the signals back; clear up where no job came as far as to write its settings.

        Returns:
            The status of each job that this command ran, in the order of their numbers.
        """
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        (self.folder / STOP).unlink(missing_ok=True)
        ran = [path for path, stamp in self._stamps().items() if self._before.get(path) != stamp]
        jobs = [job for path in ran if "job" in (job := read_status(path.parent))]
        if not any(self.folder.rglob(CONFIG)):
            self._clear([path.parent for path in ran])
        return sorted(jobs, key=lambda job: int(job["job"]))

    def _clear(self, folders: list[Path]) -> None:
        for folder in folders:
            for name in (STATUS, LOG):
                (folder / name).unlink(missing_ok=True)
            remove_empty_below(folder, self.folder)
        if SUBMITIT not in self._found:
            shutil.rmtree(self.folder / SUBMITIT, ignore_errors=True)
        if SWEEP not in self._found:
            (self.folder / SWEEP).unlink(missing_ok=True)
        remove_if_empty(self.folder)

    def _stamps(self) -> dict[Path, int]:
        """When each status in this sweep was written."""
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob(STATUS)}

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.launcher == "submitit_slurm":
            raise Stopped("its jobs stay in SLURM's queue; scancel ends them", signum)
        if self.signum is not None:
            raise KeyboardInterrupt  # a second Ctrl+C does not wait
        self.signum = signum
        write_text(self.folder / STOP, "")


_begun: Sweep | None = None  # Hydra makes the callback, and keeps it to itself


class _Refused(BaseException):
    """A refusal that Hydra does not turn into a warning, as it does with any Exception."""


class Begin(Callback):
    """Hydra calls this before a run or a sweep; ``conf/hydra/callbacks`` names it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a folder with other files of ours; Hydra would write to it before the task."""
        with suppress(OmegaConfBaseException, OSError), _refusing():
            folder = Path(expand_home(config.hydra.run.dir))
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.run.dir = str(folder)
            if os.environ.get(FOLDER) == str(folder):
                return
            if "resume" in config:
                check_run_folder(folder, config.resume)
            subfolder = config.hydra.output_subdir
            if subfolder is not None and not is_resumed(config):
                refuse_taken(folder, [subfolder])
            make_folder(folder)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        global _begun
        launch = launchers.launch()
        if launch is not None and launch.are_several:
            raise _Refused(
                f"{launch.what}, and each would run the whole sweep: start a sweep without a"
                " launcher; hydra/launcher=joblib, submitit_slurm or ray give each job its devices"
            )
        # Hydra would turn an error here into a warning. The sweeper meets it, too, and raises it.
        with suppress(OmegaConfBaseException, OSError), _refusing():
            if not OmegaConf.is_interpolation(config.hydra.sweep, "subdir"):
                raise UserError(
                    f"hydra.sweep.subdir={config.hydra.sweep.subdir} is one folder for all jobs;"
                    " put ${hydra.job.num} into it"
                )
            folder = Path(expand_home(config.hydra.sweep.dir))
            if not is_resumed(config):
                refuse_taken(folder)
            folder = folder.absolute()
            make_folder(folder)
            _keep_sweep_folder(config, folder)
            _begun = Sweep(folder, config.hydra.runtime.choices["hydra/launcher"])
            OmegaConf.save(config, folder / SWEEP)  # optuna's sweeper would not


@contextmanager
def _refusing() -> Iterator[None]:
    """Inside, a :class:`UserError`, also of a resolver, ends the command; see :class:`_Refused`."""
    try:
        yield
    except UserError as error:
        raise _Refused(str(error)) from error
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise _Refused(str(error.__cause__)) from error
        raise


def _keep_sweep_folder(config: DictConfig, folder: Path) -> None:
    """Name the sweep's folder in full, for jobs in processes with another working folder."""
    quoted = QuotedString(text=str(folder), quote=Quote.single).with_quotes()
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted}")


def _take() -> Sweep | None:
    """The sweep that was begun since this was asked last."""
    global _begun
    sweep, _begun = _begun, None
    return sweep


@contextmanager
def reported() -> Iterator[None]:
    """Inside, Hydra runs a job or a sweep; what became of a sweep's jobs is said in the end.

    Raises:
        SystemExit: with the exit code of the first job that failed.
        Stopped: a signal ended the sweep.
        UserError: its launcher or its sweeper is not installed.
        TrainingError: its launcher lost a job.
    """
    _take()
    code = 0
    try:
        yield
    except _Refused as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if missing := NOT_INSTALLED.search(str(error)):
            extra = "ray" if missing[1] == "ray" else "sweeps"
            advice = f"pip install 'iclevr-diffusion[{extra}]'"
            raise UserError(f"{missing[1] or missing[2]} is not installed: {advice}") from error
        if type(error).__module__.partition(".")[0] in LAUNCHERS:
            raise TrainingError(f"the launcher lost a job: {error}") from error
        if str(error) != NONE_FINISHED:
            raise
    finally:
        sweep = _take()
        if sweep is not None:
            code = say(sweep.folder, sweep.end())
    if sweep is not None and sweep.signum is not None:
        name = signal.Signals(sweep.signum).name
        raise Stopped(f"{name}; the same command with resume=true goes on", sweep.signum)
    if code:
        sys.exit(code)


def say(folder: Path, jobs: list[dict[str, Any]]) -> int:
    """Print a line for each failed job, and a table of all where any has left something.

    Returns:
        The exit code of the first that has not finished; 0 where all have.
    """
    for job in jobs:
        if job["status"] in ("failed", "running"):
            words = " ".join(job["overrides"])
            what = job["message"] or "its worker ended without a word"
            print(f"error in job {job['job']} ({words}): {what}", file=sys.stderr)
    if folder.exists():
        common = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs[1:] else set()
        print(f"\n{os.path.relpath(folder)}:")
        for job in jobs:
            words = " ".join(word for word in job["overrides"] if word not in common)
            score = "" if job.get("score") is None else f"{job['score']:.4f}"
            print(f"{job['job']:4}  {job['status']:8}  {score:6}  {words}")
    return next((job.get("exit_code", 1) for job in jobs if job["status"] != "finished"), 0)
