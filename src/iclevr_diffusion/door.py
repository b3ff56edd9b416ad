"""What all doors share: Hydra's composition, run folders, and how errors end."""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.errors import TrainingError, UserError

PACKAGED_CONF = Path(__file__).parent / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else Path(__file__).parents[2] / "conf"
DEBUG_FLAG = "--debug"
FULL_ERROR = "HYDRA_FULL_ERROR"
INSIDE = "ICLEVR_DIFFUSION_DOOR"
ENDS_WITH_A_LINE = (UserError, TrainingError, HydraException, OmegaConfBaseException)


def door(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a function of the composed config into a program.

    A user's mistake ends it with one line and exit code 2, a failed training with one line and exit
    code 1; ``--debug`` or HYDRA_FULL_ERROR=1 shows the traceback. Other exceptions are bugs, and
    always show it.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            # Processes that this one starts inherit its environment: not what the user set.
            users = os.environ.get(FULL_ERROR) if INSIDE not in os.environ else None
            debug = DEBUG_FLAG in sys.argv or users == "1"
            sys.argv[:] = [argument for argument in sys.argv if argument != DEBUG_FLAG]

            @functools.wraps(task)
            def job(cfg: DictConfig) -> None:
                try:
                    task(cfg)
                except ENDS_WITH_A_LINE as error:
                    # In a sweep Hydra collects the errors, so that one job does not stop the rest.
                    # A single job ends here: Hydra would put a line of its own before ours.
                    if debug or HydraConfig.get().mode == RunMode.MULTIRUN:
                        raise
                    _end(error)

            program = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            # Hydra would print errors its own way and exit with 1; this makes it raise them.
            os.environ[FULL_ERROR] = os.environ[INSIDE] = "1"
            try:
                program(job)()
            except ENDS_WITH_A_LINE as error:
                if debug:
                    raise
                _end(error)
            finally:
                del os.environ[FULL_ERROR], os.environ[INSIDE]
                if users is not None:
                    os.environ[FULL_ERROR] = users

        return main

    return decorate


def _end(error: BaseException) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(1 if isinstance(error, TrainingError) else 2)


def one_line(error: BaseException) -> str:
    """The message of an error, in one line, without Hydra's and OmegaConf's lists of places."""
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


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: it is one.
    """
    hydra = HydraConfig.get()
    basic = hydra.runtime.choices.get("hydra/launcher") == "basic"
    several = cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1
    if hydra.mode == RunMode.MULTIRUN and basic and several:
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def refuse_sweep() -> None:
    """Refuse ``-m`` for a door whose outputs the jobs of a sweep would share.

    Raises:
        UserError: it is a sweep.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("this command takes no -m; give it lists, such as 'sampler.steps=[5,10]'")


@functools.cache
def new_or_latest(parent: str, resume: bool | str) -> str:
    """The run folder for a command: a new one, or with ``resume`` the one to go on in.

    Args:
        parent: where the runs of this experiment, or the sweeps, lie.
        resume: false for a new folder, named by the time; true for the newest one with a
            checkpoint, or the newest sweep; a path for that.

    Raises:
        UserError: there is nothing to resume.
    """
    if resume is False:
        return str(Path(parent) / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f"))
    if resume is not True:
        if not _can_resume(Path(resume)):
            raise UserError(f"resume={resume}: there is no checkpoint in that folder")
        return resume
    runs = sorted(path for path in Path(parent).glob("*") if _can_resume(path))
    if not runs:
        raise UserError(f"resume=true: no run in {parent} has a checkpoint; start without it")
    return str(runs[-1])


def _can_resume(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").is_file() or (folder / "multirun.yaml").is_file()


OmegaConf.register_new_resolver("run_folder", new_or_latest, replace=True)
