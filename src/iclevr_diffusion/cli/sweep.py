"""Start a sweep, stop its jobs on a signal, and report their results."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.cli.jobs import FOLDER, LOG, STOP
from iclevr_diffusion.cli.overrides import in_quotes
from iclevr_diffusion.cli.run_dir import (
    SWEEP,
    check_run_folder,
    is_resumed,
    refuse_taken,
    remove_empty_below,
)
from iclevr_diffusion.training import launchers
from iclevr_diffusion.utils.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.utils.files import CONFIG, expand_home, write_text
from iclevr_diffusion.utils.folders import make_folder, remove_if_empty
from iclevr_diffusion.utils.signals import handling
from iclevr_diffusion.utils.status import STATUS, read_status

SUBMITIT = ".submitit"  # the launcher's pickles and logs, in the folder of the sweep
LAUNCHERS = ("joblib", "ray", "submitit")  # packages
NOT_INSTALLED = re.compile(
    r"Unknown plugin class : 'hydra_plugins\.hydra_(joblib|submitit|ray)_"
    r"|Could not find 'hydra/sweeper/(optuna)'"
)
NONE_FINISHED = "No trials are completed yet."  # optuna's message


class Sweep:
    """A sweep that this process has started.

    On SIGTERM and Ctrl+C its jobs stop with a checkpoint. Jobs in SLURM's queue remain there, since
    the command only waits for them. Jobs of the basic launcher handle signals themselves.

    Args:
        folder: The folder of the sweep; with ``resume`` it holds jobs of an earlier command.
        launcher: The name of Hydra's launcher.
    """

    def __init__(self, folder: Path, launcher: str) -> None:
        self.folder = folder
        self.launcher = launcher
        self.signum: int | None = None
        self._found = {path.name for path in folder.glob("*")}
        self._before = self._stamps()
        (folder / STOP).unlink(missing_ok=True)
        signals = () if launcher == "basic" else (signal.SIGINT, signal.SIGTERM)
        self._signals = ExitStack()
        self._signals.enter_context(handling(signals, self._stop))

    def end(self) -> list[dict[str, Any]]:
        """Restore the signal handlers, and clean up if no job has written its settings.

        Returns:
            The status of each job that this command has run, by number.
        """
        self._signals.close()
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
        """Return the modification time of each status file of the sweep."""
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob(STATUS)}

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.launcher == "submitit_slurm":
            raise Stopped("its jobs stay in SLURM's queue; scancel ends them", signum)
        if self.signum is not None:
            raise KeyboardInterrupt  # a second Ctrl+C does not wait
        self.signum = signum
        write_text(self.folder / STOP, "")


_begun: Sweep | None = None  # not an attribute: Hydra creates the callback, and hides it


class _Refused(BaseException):
    """A refusal that Hydra does not turn into a warning, as it does with every Exception."""


class PrepareFolder(Callback):
    """A callback that prepares the folder of a run or sweep; see ``conf/hydra/callbacks``."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a folder that holds another run, before Hydra writes to it."""
        with suppress(OmegaConfBaseException, OSError), _refusing():
            if "resume" in config and FOLDER not in os.environ:
                _refuse_setting(config, "hydra.sweep.dir", "a sweep, with -m; use hydra.run.dir")
            folder = _named(config.hydra.run, "hydra.run.dir")
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
        # Hydra would turn an error here into a warning. The sweeper raises the same one.
        with suppress(OmegaConfBaseException, OSError), _refusing():
            if not OmegaConf.is_interpolation(config.hydra.sweep, "subdir"):
                raise UserError(
                    f"hydra.sweep.subdir={config.hydra.sweep.subdir} is one folder for all jobs;"
                    " put ${hydra.job.num} into it"
                )
            _refuse_setting(config, "hydra.run.dir", "one run, without -m; use hydra.sweep.dir")
            folder = _named(config.hydra.sweep, "hydra.sweep.dir")
            if not is_resumed(config):
                refuse_taken(folder)
            folder = folder.absolute()
            make_folder(folder)
            _keep_sweep_folder(config, folder)
            _begun = Sweep(folder, config.hydra.runtime.choices["hydra/launcher"])
            OmegaConf.save(config, folder / SWEEP)  # optuna's sweeper would not


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn a :class:`UserError`, also of a resolver, into :class:`_Refused`."""
    try:
        yield
    except UserError as error:
        raise _Refused(str(error)) from error
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, UserError):
            raise _Refused(str(error.__cause__)) from error
        raise


def _refuse_setting(config: DictConfig, name: str, advice: str) -> None:
    """Refuse a setting of the command line that Hydra would ignore.

    Raises:
        UserError: It is given.
    """
    if any(word.lstrip("+").startswith(f"{name}=") for word in config.hydra.overrides.hydra):
        raise UserError(f"{name}=… is for {advice}")


def _named(group: DictConfig, setting: str) -> Path:
    """Return the folder of a setting ``dir``; an empty one would be the current folder.

    Raises:
        UserError: It is empty.
    """
    if not str(group.dir).strip():
        raise UserError(f"{setting}= is empty; name a folder, or leave it out")
    return Path(expand_home(group.dir))


def _keep_sweep_folder(config: DictConfig, folder: Path) -> None:
    """Make the sweep's folder absolute, for jobs with another working directory."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir={in_quotes(str(folder))}")


def _take() -> Sweep | None:
    """Return the sweep that has been started since the last call."""
    global _begun
    sweep, _begun = _begun, None
    return sweep


@contextmanager
def reported() -> Iterator[None]:
    """Report the jobs of a sweep at the end of the block, in which Hydra runs a job or a sweep.

    Raises:
        SystemExit: A job has failed; the exit code is that of the first.
        Stopped: A signal has ended the sweep.
        UserError: The launcher or the sweeper is not installed, or the sweep has no jobs.
        TrainingError: The launcher has lost a job.
    """
    _take()
    code, ran = 0, []
    try:
        yield
    except _Refused as error:
        raise UserError(str(error)) from error
    except Exception as error:
        if missing := NOT_INSTALLED.search(str(error)):
            extra = "ray" if missing[1] == "ray" else "sweeps"
            advice = f"pip install '.[{extra}]'"
            raise UserError(f"{missing[1] or missing[2]} is not installed: {advice}") from error
        if type(error).__module__.partition(".")[0] in LAUNCHERS:
            raise TrainingError(f"the launcher lost a job: {error}") from error
        if str(error) != NONE_FINISHED:
            raise
    finally:
        sweep = _take()
        if sweep is not None:
            ran = sweep.end()
            code = report_jobs(sweep.folder, ran)
    if sweep is not None and sweep.signum is not None:
        name = signal.Signals(sweep.signum).name
        raise Stopped(f"{name}; to resume, run the same command with resume=true", sweep.signum)
    if sweep is not None and not ran:
        raise UserError("the sweep has no jobs: one of its settings has no values")
    if code:
        sys.exit(code)


def report_jobs(folder: Path, jobs: list[dict[str, Any]]) -> int:
    """Print a line for each failed job, and a table of all jobs if any has left files.

    Returns:
        The exit code of the first job that has not finished; 0 if all have.
    """
    for job in jobs:
        if job["status"] in ("failed", "running"):
            words = " ".join(job["overrides"])
            what = job["message"] or "its worker ended without a message"
            print(f"error in job {job['job']} ({words}): {what}", file=sys.stderr)
    if folder.exists():
        common = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs[1:] else set()
        print(f"\n{os.path.relpath(folder)}:\n job  status    score   settings")
        for job in jobs:
            words = " ".join(word for word in job["overrides"] if word not in common)
            score = "" if job.get("score") is None else f"{job['score']:.4f}"
            print(f"{job['job']:4}  {job['status']:8}  {score:6}  {words}")
    return next((job.get("exit_code", 1) for job in jobs if job["status"] != "finished"), 0)
