"""The jobs of a sweep and their status.

Hydra's basic launcher runs the jobs in this process, one after the other. With any other launcher
a job is a separate command, which the launcher's worker starts and waits for. A job cannot run in
the worker itself: workers of joblib and ray run several jobs each, so that random states, caches
and handlers of one would reach the next; and Lightning would start the processes of the other
devices with the command line of the worker.

The result of a job is in its folder's ``status.json``: ``status`` (running, finished, stopped,
failed), ``message``, ``overrides``, ``job`` (its number), ``exit_code``, ``score``.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from iclevr_diffusion.cli.overrides import in_quotes
from iclevr_diffusion.cli.run_dir import refuse_taken, remove_empty_below
from iclevr_diffusion.training.launchers import is_first
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.signals import handling
from iclevr_diffusion.utils.status import STATUS, read_status, write_status

LOG = "output.log"  # the output of a job
STOP = ".stop"  # in the folder of a sweep: its jobs must stop
PERIOD = 0.5  # seconds between two polls
FOLDER = "ICLEVR_DIFFUSION_JOB_FOLDER"  # claimed by a worker for the command that it starts
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep|mode|run)\b")


@dataclass(frozen=True)
class Origin:
    """The user's command, as it is passed to the workers of its jobs."""

    program: str
    debug: bool
    pid: int = field(default_factory=os.getpid)
    devices: str | None = field(default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))


def in_a_sweep() -> bool:
    """Return whether this is a job of a sweep, in any process."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def shares_its_process() -> bool:
    """Return whether other jobs of the sweep run in this process, before or after this one."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def has_a_worker() -> bool:
    """Return whether this process is the worker of another launcher than Hydra's basic one."""
    choice = HydraConfig.get().runtime.choices.get("hydra/launcher")
    return shares_its_process() and choice != "basic"


def note(folder: Path, status: str, message: str = "", **more: Any) -> None:
    """Write the status of this job of a sweep, in the first of its processes."""
    if not is_first():
        return
    job = HydraConfig.get()
    known = {} if status == "running" else read_status(folder)
    kept: dict[str, Any] = {key: known[key] for key in ("exit_code", "score") if key in known}
    more = {**kept, "job": job.job.num, **more}
    write_status(folder, status, message, list(job.overrides.task), **more)


def claim(folder: Path) -> None:
    """Claim a folder for this job alone; Hydra has created it if it was missing.

    Raises:
        UserError: It is not below the sweep's folder, or holds files of another job or run.
    """
    sweep = sweep_folder()
    if sweep.resolve() not in folder.resolve().parents:
        raise UserError(
            f"hydra.sweep.subdir={HydraConfig.get().sweep.subdir} leads out of the sweep's folder;"
            " name one below hydra.sweep.dir"
        )
    if not is_first():
        return
    try:
        refuse_taken(folder)
        (folder / STATUS).touch(exist_ok=False)
    except (UserError, FileExistsError) as error:
        raise UserError(
            f"{folder} is another job's folder, which is not overwritten; put"
            " ${hydra.job.num} into hydra.sweep.subdir"
        ) from error


def sweep_folder() -> Path:
    """Return the folder of the sweep that this job belongs to."""
    job = HydraConfig.get()
    return Path(job.runtime.cwd, job.sweep.dir)


def note_refused(message: str) -> None:
    """Write the reason why this job was refused, in a separate folder."""
    number = HydraConfig.get().job.num
    note(sweep_folder() / f"{number}_refused", "failed", message, exit_code=2)


def run_as_command(origin: Origin, folder: Path) -> float | None:
    """Run this job as a separate command, with its output in a file, and wait for it.

    Returns:
        The score of the job, if it has one.
    """
    stop = sweep_folder() / STOP
    if stop.exists():
        if (folder / STATUS).exists() and not read_status(folder):
            (folder / STATUS).unlink()  # it was only claimed
        remove_empty_below(folder, sweep_folder())
        return None
    note(folder, "running")
    code = _run(command(origin, folder), folder, stop, origin)
    if "SLURM_JOB_ID" in os.environ and code == 128 + signal.SIGUSR1:
        # It has been queued again. A result, or an exit by an exception, would end it for submitit.
        os._exit(128 + signal.SIGUSR1)
    if read_status(folder).get("status") == "running":
        how = f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        note(folder, "failed", f"it ended with {how}; see {folder / LOG}", exit_code=1)
    return read_status(folder).get("score")


def command(origin: Origin, folder: Path) -> list[str]:
    """Return the command line that runs this job alone."""
    job = HydraConfig.get()
    sources = {source.provider: source.path for source in job.runtime.config_sources}
    words = [sys.executable, "-m", f"iclevr_diffusion.{origin.program}"]
    words += ["--debug"] if origin.debug else []
    words += ["--config-path", sources["main"], "--config-name", str(job.job.config_name)]
    if "command-line" in sources:
        words += ["--config-dir", sources["command-line"]]
    words += list(job.overrides.task)
    words += [word for word in job.overrides.hydra if not OF_THE_SWEEP.match(word)]
    folder_of_job = f"hydra.run.dir={in_quotes(str(folder))}"
    return [*words, "hydra.mode=RUN", f"hydra.job.num={job.job.num}", folder_of_job]


def _run(words: Sequence[str], folder: Path, stop: Path, origin: Origin) -> int:
    """Run a job's command, and terminate it once the file ``stop`` exists.

    Returns:
        The exit code, or minus the number of the signal that ended it.
    """
    with (folder / LOG).open("a", encoding="utf-8") as output:
        print("$", shlex.join(words), file=output, flush=True)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=HydraConfig.get().runtime.cwd,
            env=_environment(origin.devices) | {FOLDER: str(folder)},
        )
    is_terminated = False
    # joblib with one job at a time has no other process for it.
    with nullcontext() if os.getpid() == origin.pid else _signals_handed_on(process):
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(PERIOD)
            if stop.exists() and not is_terminated:
                process.terminate()
                is_terminated = True


def _environment(devices: str | None) -> dict[str, str]:
    """Return this environment, with the devices that submitit's local executor hides."""
    result = dict(os.environ)
    if result.get("SUBMITIT_EXECUTOR") == "local":
        result.pop("CUDA_VISIBLE_DEVICES", None)
        result |= {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    return result


@contextmanager
def _signals_handed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Forward signals to a job's process within the block; the worker itself continues."""

    def hand_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    # The terminal sends Ctrl+C to all processes, and the job decides. This handler is not restored:
    # the end of an idle worker would break joblib's pool, which then kills the others.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    handed_on = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
    with handling(handed_on, hand_on):
        yield
