"""What all doors share: Hydra's composition, and how errors end."""

import functools
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion import cluster, jobs, sweeps
from iclevr_diffusion.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.files import reason
from iclevr_diffusion.folders import goes_on, remove_if_empty
from iclevr_diffusion.overrides import SWEEP_FLAGS, quoted
from iclevr_diffusion.refusals import explained, refuse_unknown_flags
from iclevr_diffusion.settings import PATH, WORDS, check_settings, names_of
from iclevr_diffusion.status import status_after
from iclevr_diffusion.terminal import VERSION_FLAG, make_safe, version_line

PACKAGED_CONF = Path(__file__).parent / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else Path(__file__).parents[2] / "conf"
DEBUG_FLAG = "--debug"
HELP_FLAGS = {"--help", "-h"}
FULL_ERROR = "HYDRA_FULL_ERROR"
INSIDE = "ICLEVR_DIFFUSION_DOOR"
FIRST_SPEAKS = 5.0  # seconds in which a launcher ends its other processes, once one has failed
ENDS_WITH_A_LINE = (
    UserError,
    TrainingError,
    Stopped,
    HydraException,
    OmegaConfBaseException,
    OSError,
    KeyboardInterrupt,
)

# conf/hydra/launcher has the plugins' names: Hydra fills in the settings that are left out there,
# and says that it will not do so in a later version.
warnings.filterwarnings(
    "ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
)

Task = Callable[[DictConfig], float | None]
_tasks: dict[str, tuple[Task, type]] = {}  # of the doors that this process has loaded


def door(config_name: str, schema: type) -> Callable[[Task], Callable[[], None]]:
    """Make a function of the composed config into a program; ``schema``: what is in that config.

    What it returns is its score, which a search makes as high as it can; None for none.

    A user's mistake, or a file that cannot be read or written, ends it with one line and exit code
    2, a failed training with one line and exit code 1, a signal with one line and 128 plus its
    number; ``--debug`` or HYDRA_FULL_ERROR=1 shows the traceback. Other exceptions are bugs, and
    always show it. No empty folder stays behind.
    """

    def decorate(task: Task) -> Callable[[], None]:
        _tasks[config_name] = task, schema

        @functools.wraps(task)
        def main() -> None:
            make_safe()
            if VERSION_FLAG in sys.argv[1:]:
                print(version_line())
                return
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            with (
                _hydra_raises(schema) as debug,
                ends_with_a_line(debug),
                explained(CONF / f"{config_name}.yaml", schema),
                sweeps.reported(),
            ):
                refuse_unknown_flags(sys.argv[1:])
                is_help = bool(HELP_FLAGS & {*sys.argv[1:]})
                with _quick_help() if is_help else _composed_once():
                    run(_job(config_name, debug))()

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


@contextmanager
def _quick_help() -> Iterator[None]:
    """Inside, Hydra looks configs up where they are.

    Else its help copies them all for each of its groups, which takes longer than all the rest.
    """
    slow = ConfigLoaderImpl.get_group_options

    def get_group_options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.get_group_options = slow  # type: ignore[method-assign]


@contextmanager
def _composed_once() -> Iterator[None]:
    """Inside, Hydra composes the config of a run once.

    Else it does so twice: to ask ``hydra.mode`` whether the run is a sweep, and to run it.
    """
    mode_of, compose = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    composed: list[DictConfig] = []

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
        mode: RunMode | None
        if any(flag in sys.argv for flag in SWEEP_FLAGS):
            mode = mode_of(self, config_name, overrides)
            return mode
        try:
            cfg = self.config_loader.load_configuration(config_name, overrides, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, ValueError):
            # A user's own config may say that it is a sweep, of which more values are allowed.
            if mode_of(self, config_name, overrides) == RunMode.MULTIRUN:
                return RunMode.MULTIRUN
            raise
        if cfg.hydra.mode == RunMode.MULTIRUN:
            return RunMode.MULTIRUN
        composed.append(cfg)
        return RunMode.RUN

    def load_configuration(self: ConfigLoaderImpl, *arguments: Any, **named: Any) -> DictConfig:
        return composed.pop() if composed else compose(self, *arguments, **named)

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = mode_of  # type: ignore[method-assign]
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


@contextmanager
def _hydra_raises(schema: type) -> Iterator[bool]:
    """Inside, Hydra raises errors; it would print them its own way, and exit with 1.

    Its arguments are put as it can read them.

    Args:
        schema: the command's settings.

    Returns:
        Whether the user wants tracebacks.
    """
    # Processes that this one starts inherit its environment: not what the user set.
    users = os.environ.get(FULL_ERROR) if INSIDE not in os.environ else None
    debug = DEBUG_FLAG in sys.argv or users == "1"
    program, *arguments = (word for word in sys.argv if word != DEBUG_FLAG)
    # Hydra's parser takes this flag before or after the overrides, but not among them.
    arguments = quoted(arguments, names_of(PATH, schema), names_of(WORDS, schema))
    arguments = sorted(arguments, key=lambda word: word not in SWEEP_FLAGS)
    sys.argv[:] = [program, *(_trainer_word(word, schema) for word in arguments)]
    os.environ[FULL_ERROR] = os.environ[INSIDE] = "1"
    try:
        yield debug
    finally:
        del os.environ[FULL_ERROR], os.environ[INSIDE]
        if users is not None:
            os.environ[FULL_ERROR] = users


def _trainer_word(word: str, schema: type) -> str:
    """An override as Hydra reads it: of the trainer's settings, a ``+`` makes no difference.

    Lightning's users write both. Of unknown ones, :func:`check_settings` says what to write.
    """
    match = re.match(r"\+*trainer\.(\w+)=", word)
    group = get_type_hints(schema).get("trainer")
    if match is None or group is None:
        return word
    known = match[1] in (field.name for field in fields(group))
    return ("" if known else "++") + word.lstrip("+")


def _job(name: str, debug: bool) -> Task:
    """What Hydra calls with a config: once, or for each job of a sweep, maybe in other processes.

    Launchers pickle it, so it refers to the door by its name: a worker that only waits for the
    job's own process need not load torch.
    """
    origin = jobs.Origin(name, debug)

    def job(cfg: DictConfig) -> float | None:
        folder = run_folder()
        # With hydra.job.chdir=true Hydra has gone into that folder. The user's relative paths are
        # meant from here, and nothing is written anywhere but into the run's folder anyway.
        os.chdir(HydraConfig.get().runtime.cwd)
        if jobs.shares_its_process() and not goes_on(cfg):
            try:
                jobs.claim(folder)
            except UserError as error:
                jobs.note_refused(one_line(error))
                return None
        if jobs.has_a_worker():
            return jobs.run_as_command(origin, folder)
        try:
            return _run(name, cfg, folder)
        except ENDS_WITH_A_LINE as error:
            remove_if_empty(folder)
            if debug:
                raise
            # One failed job does not stop the rest of a sweep; a signal is meant for all.
            if jobs.shares_its_process() and not isinstance(error, Stopped | KeyboardInterrupt):
                return None
            _end(error)

    return job


def _run(name: str, cfg: DictConfig, folder: Path) -> float | None:
    """Run a door's task; in a sweep, leave in its folder what became of it."""
    if not jobs.in_a_sweep():
        return _checked(name, cfg)
    jobs.note(folder, "running")
    try:
        score = _checked(name, cfg)
    except BaseException as error:
        with suppress(OSError):
            jobs.note(folder, status_after(error), one_line(error), exit_code=exit_code(error))
        raise
    jobs.note(folder, "finished", score=score)
    return score


def _checked(name: str, cfg: DictConfig) -> float | None:
    """Check the settings, and run a door's task.

    Raises:
        UserError: a setting is missing, unknown or of another type.
        TrainingError: the accelerator's memory is full.
    """
    task, schema = _tasks[name]
    check_settings(cfg, schema)
    try:
        return task(cfg)
    except RuntimeError as error:
        from torch import OutOfMemoryError  # what raised one has imported torch

        if not isinstance(error, OutOfMemoryError):
            raise
        raise TrainingError(
            "the accelerator's memory is full: lower data.batch_size (and raise"
            " trainer.accumulate_grad_batches), or to draw, batch_size"
        ) from error


def _end(error: BaseException) -> NoReturn:
    """Say in one line what ended the program, and end it."""
    rank = cluster.local_rank()
    stopped = isinstance(error, Stopped | KeyboardInterrupt)
    if stopped and rank:
        sys.exit(0)  # the first process speaks for all
    if rank and cluster.launch() is not None:
        time.sleep(FIRST_SPEAKS)  # the first has most likely met the same error, and says it
    process = f" in process {rank}" if rank else ""
    what = "stopped" if stopped else f"error{process}"
    print(f"{what}: {one_line(error)}", file=sys.stderr, flush=True)
    sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    if isinstance(error, Stopped):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, TrainingError) or not isinstance(error, ENDS_WITH_A_LINE):
        return 1
    return 2


def one_line(error: BaseException) -> str:
    """The message of an error, in one line, without Hydra's and OmegaConf's lists of places."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if not isinstance(error, ENDS_WITH_A_LINE):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return f"{error.filename or 'a file'}: {reason(error)}"
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, OSError):
        return one_line(error.__cause__)
    if isinstance(error, HydraException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{' '.join(str(error).split())} {one_line(error.__cause__)}"
    if bare := re.match(r"Error parsing override '([^']*)'\s+missing EQUAL", str(error)):
        return (
            f"{bare[1]!r} is not a setting: write name=value, with quotes of its own around a value"
            " that has spaces"
        )
    bare_text = str(error).partition("\nConfig search path:")[0]
    text = re.sub(
        r"\n\s*(full_key|object_type|reference_type|See https?://\S+)[^\n]*", "", bare_text
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


def refuse_several() -> None:
    """Refuse ``-m``, and several processes, for a door whose outputs they would share.

    Raises:
        UserError: there are several.
    """
    refuse_launcher()
    if jobs.in_a_sweep():
        raise UserError("this command takes no -m; give it lists, such as 'sampler.steps=[5,10]'")


def refuse_launcher() -> None:
    """Refuse a launcher that has started several processes.

    Raises:
        UserError: one has.
    """
    launch = cluster.launch()
    if launch is not None and launch.are_several:
        raise UserError(
            f"{launch.what}, but this command runs in one process: start it without a launcher"
        )
