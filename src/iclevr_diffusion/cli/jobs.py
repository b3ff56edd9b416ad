"""The jobs of a sweep, and what becomes of them.

Hydra's basic launcher runs the jobs in this process, one after the other. With any other launcher
a job is a command of its own, which the launcher's worker starts and waits for. The workers of
joblib and ray take several jobs: random states, caches and handlers of one would reach the next.
And Lightning starts further processes, one a device, with the command line that it finds.

What became of a job is in its folder's ``status.json``: ``status`` (running, finished, stopped,
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

from iclevr_diffusion.cli.run_dir import refuse_taken, remove_empty_below
from iclevr_diffusion.training.launchers import is_first
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.status import STATUS, read_status, write_status

LOG = "output.log"  # what a job printed
STOP = ".stop"  # in the folder of a sweep: its jobs are to end
PERIOD = 0.5  # seconds between two looks
FOLDER = "ICLEVR_DIFFUSION_JOB_FOLDER"  # that a worker has taken for the command it starts
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](launcher|sweeper|sweep|mode|run)\b")


@dataclass(frozen=True)
class Origin:
    """The command that the user gave; the workers of its jobs are told.

    program: the module of the command.
    debug: whether errors show their traceback.
    pid: of its process.
    devices: its CUDA_VISIBLE_DEVICES.
    """

    program: str
    debug: bool
    pid: int = field(default_factory=os.getpid)
    devices: str | None = field(default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))


def in_a_sweep() -> bool:
    """Whether this is a job of a sweep, in whichever process."""
    return not OmegaConf.is_missing(HydraConfig.get().job, "num")


def shares_its_process() -> bool:
    """Whether other jobs of the sweep run in this process, too, before or after this one."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def has_a_worker() -> bool:
    """Whether a launcher other than Hydra's basic one has a worker here for this job."""
    choice = HydraConfig.get().runtime.choices.get("hydra/launcher")
    return shares_its_process() and choice != "basic"


def note(folder: Path, status: str, message: str = "", **more: Any) -> None:
    """Write what has become of this job of a sweep; of its processes, the first one does."""
    if not is_first():
        return
    job = HydraConfig.get()
    known = {} if status == "running" else read_status(folder)
    kept: dict[str, Any] = {key: known[key] for key in ("exit_code", "score") if key in known}
    more = {**kept, "job": job.job.num, **more}
    write_status(folder, status, message, list(job.overrides.task), **more)


def claim(folder: Path) -> None:
    """Take a folder for this job alone; Hydra has made it where it was missing.

    Raises:
        UserError: it is not below the sweep's, or holds something of another job or run.
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
    """The folder of the sweep that this job belongs to."""
    job = HydraConfig.get()
    return Path(job.runtime.cwd, job.sweep.dir)


def note_refused(message: str) -> None:
    """Write why this job has no folder; into one of its own."""
    number = HydraConfig.get().job.num
    note(sweep_folder() / f"{number}_refused", "failed", message, exit_code=2)


def run_as_command(origin: Origin, folder: Path) -> float | None:
    """Run this job as a command of its own, to its end; what it prints goes into a file.

    Returns:
        Its score, where it has one.
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
        # It is back in the queue. A result, or an exit by an exception, would end it for submitit.
        os._exit(128 + signal.SIGUSR1)
    if read_status(folder).get("status") == "running":
        how = f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        note(folder, "failed", f"it ended with {how}; see {folder / LOG}", exit_code=1)
    return read_status(folder).get("score")


def command(origin: Origin, folder: Path) -> list[str]:
    """The command line that runs this job, and nothing else of its sweep."""
    job = HydraConfig.get()
    sources = {source.provider: source.path for source in job.runtime.config_sources}
    words = [sys.executable, "-m", f"{__package__}.{origin.program}"]
    words += ["--debug"] if origin.debug else []
    words += ["--config-path", sources["main"], "--config-name", str(job.job.config_name)]
    if "command-line" in sources:
        words += ["--config-dir", sources["command-line"]]
    words += list(job.overrides.task)
    words += [word for word in job.overrides.hydra if not OF_THE_SWEEP.match(word)]
    path = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    return [*words, "hydra.mode=RUN", f"hydra.job.num={job.job.num}", f'hydra.run.dir="{path}"']


def _run(words: Sequence[str], folder: Path, stop: Path, origin: Origin) -> int:
    """Run a job's command to its end; end it once the file ``stop`` is there.

    Returns:
        Its exit code; minus the signal's number where one ended it.
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
    told = False
    # joblib with one job at a time has no other process for it.
    with nullcontext() if os.getpid() == origin.pid else _signals_handed_on(process):
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(PERIOD)
            if stop.exists() and not told:
                process.terminate()
                told = True


def _environment(devices: str | None) -> dict[str, str]:
    """This process's environment, with the devices that submitit's local executor hides."""
    result = dict(os.environ)
    if result.get("SUBMITIT_EXECUTOR") == "local":
        result.pop("CUDA_VISIBLE_DEVICES", None)
        result |= {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    return result


@contextmanager
def _signals_handed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Inside, a job's process gets the signals that are meant for it, and its worker goes on."""

    def hand_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    # The terminal sends Ctrl+C to all processes, and the job decides. This handler stays: it would
    # break joblib's pool to end an idle worker, and the pool kills the others then.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    handed_on = [signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
    before = {signum: signal.signal(signum, hand_on) for signum in handed_on}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
