"""The decorator of all commands: composition by Hydra, and errors in one line."""

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

from iclevr_diffusion.cli import jobs, sweep
from iclevr_diffusion.cli.hydra_errors import explained, refuse_unknown_flags
from iclevr_diffusion.cli.overrides import SWEEP_FLAGS, quoted
from iclevr_diffusion.cli.run_dir import is_resumed, remove_if_empty
from iclevr_diffusion.cli.schema import names_of_paths, names_of_texts
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.training import launchers
from iclevr_diffusion.utils.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.utils.files import reason
from iclevr_diffusion.utils.status import status_after
from iclevr_diffusion.utils.terminal import VERSION_FLAG, make_safe, version_line

PACKAGE = Path(__file__).parents[1]
PACKAGED_CONF = PACKAGE / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else PACKAGE.parents[1] / "conf"
DEBUG_FLAG = "--debug"
HELP_FLAGS = {"--help", "-h"}
FULL_ERROR = "HYDRA_FULL_ERROR"
INSIDE = "ICLEVR_DIFFUSION_COMMAND"
REPORT_DELAY = 5.0  # seconds in which a launcher ends its other processes after a failure
ENDS_WITH_A_LINE = (
    UserError,
    TrainingError,
    Stopped,
    HydraException,
    OmegaConfBaseException,
    OSError,
    KeyboardInterrupt,
)

# The files in conf/hydra/launcher have the names of plugins: Hydra fills in missing settings, and
# warns that a later version will not.
warnings.filterwarnings(
    "ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
)

Task = Callable[[DictConfig], float | None]
_tasks: dict[str, tuple[Task, type]] = {}  # of the commands that this process has loaded


def command(config_name: str, schema: type) -> Callable[[Task], Callable[[], None]]:
    """Turn a function of a composed config into a program.

    The function returns its score, which a search maximises, or None.

    A user's mistake, or a file that cannot be read or written, ends the program with one line and
    exit code 2, a failed training with one line and exit code 1, a signal with one line and 128
    plus its number; ``--debug`` or HYDRA_FULL_ERROR=1 shows the traceback. Other exceptions are
    bugs and always show it. Empty folders are removed.

    Args:
        config_name: The file in ``conf/`` with the defaults list.
        schema: The dataclass of the config's top level.
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
                sweep.reported(),
            ):
                refuse_unknown_flags(sys.argv[1:])
                is_help = bool(HELP_FLAGS & {*sys.argv[1:]})
                with _quick_help() if is_help else _composed_once():
                    run(_job(config_name, debug))()

        return main

    return decorate


@contextmanager
def ends_with_a_line(debug: bool) -> Iterator[None]:
    """End the program after a mistake, a failure or a signal, as :func:`command` documents."""
    try:
        yield
    except ENDS_WITH_A_LINE as error:
        if debug:
            raise
        _end(error)


@contextmanager
def _quick_help() -> Iterator[None]:
    """Let Hydra's help list the groups without copying all configs for each of them.

    The copies would take longer than everything else.
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
    """Let Hydra compose the config of a run once.

    It would do so twice: to find out from ``hydra.mode`` whether the run is a sweep, and to run it.
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
            # A user's config may make it a sweep, for which more values are allowed.
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
    """Let Hydra raise its errors instead of printing them, and quote its arguments.

    Args:
        schema: The dataclass of the command's settings.

    Yields:
        Whether the user wants tracebacks.
    """
    # Processes that this one starts inherit its environment, which is not the user's.
    users = os.environ.get(FULL_ERROR) if INSIDE not in os.environ else None
    debug = DEBUG_FLAG in sys.argv or users == "1"
    program, *arguments = (word for word in sys.argv if word != DEBUG_FLAG)
    # Hydra's parser takes this flag before or after the overrides, but not among them.
    arguments = quoted(arguments, names_of_paths(schema), names_of_texts(schema))
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
    """Return an override with or without ``+``, as Hydra needs it for the trainer's settings.

    Users of Lightning write both. :func:`check_config` refuses unknown ones, with advice.
    """
    match = re.match(r"\+*trainer\.(\w+)=", word)
    group = get_type_hints(schema).get("trainer")
    if match is None or group is None:
        return word
    known = match[1] in (field.name for field in fields(group))
    return ("" if known else "++") + word.lstrip("+")


def _job(name: str, debug: bool) -> Task:
    """Return the function that Hydra calls with a config, once or for each job of a sweep.

    Launchers pickle it, so it refers to the command by name: a worker that only waits for the
    process of a job does not load torch.
    """
    origin = jobs.Origin(name, debug)

    def job(cfg: DictConfig) -> float | None:
        folder = run_folder()
        # With hydra.job.chdir=true Hydra has changed into that folder; relative paths of the user
        # are relative to the original one, and files are only written to the run folder anyway.
        os.chdir(HydraConfig.get().runtime.cwd)
        if jobs.shares_its_process() and not is_resumed(cfg):
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
            # A failed job does not stop the rest of a sweep; a signal does.
            if jobs.shares_its_process() and not isinstance(error, Stopped | KeyboardInterrupt):
                return None
            _end(error)

    return job


def _run(name: str, cfg: DictConfig, folder: Path) -> float | None:
    """Run a command's task; in a sweep, write its status to its folder."""
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
    """Check the settings, and run a command's task.

    Raises:
        UserError: A setting is missing, unknown or of another type.
        TrainingError: The accelerator's memory is full.
    """
    task, schema = _tasks[name]
    check_config(cfg, schema)
    try:
        return task(cfg)
    except RuntimeError as error:
        from torch import OutOfMemoryError  # its origin has imported torch already

        if not isinstance(error, OutOfMemoryError):
            raise
        raise TrainingError(
            "the accelerator's memory is full: lower data.batch_size (and raise"
            " trainer.accumulate_grad_batches), or batch_size of evaluate"
        ) from error


def _end(error: BaseException) -> NoReturn:
    """Print the reason in one line, and end the program."""
    rank = launchers.local_rank()
    stopped = isinstance(error, Stopped | KeyboardInterrupt)
    if stopped and rank:
        sys.exit(0)  # the first process reports it
    if rank and launchers.launch() is not None:
        time.sleep(REPORT_DELAY)  # most likely the first process reports the same error
    process = f" in process {rank}" if rank else ""
    what = "stopped" if stopped else f"error{process}"
    print(f"{what}: {one_line(error)}", file=sys.stderr, flush=True)
    sys.exit(exit_code(error))


def exit_code(error: BaseException) -> int:
    """Return the exit code for an exception, as :func:`command` documents."""
    if isinstance(error, Stopped):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, TrainingError) or not isinstance(error, ENDS_WITH_A_LINE):
        return 1
    return 2


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without Hydra's and OmegaConf's details."""
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
        return f"{bare[1]!r} is not a setting: write name=value, and quote a value that has spaces"
    bare_text = str(error).partition("\nConfig search path:")[0]
    text = re.sub(
        r"\n\s*(full_key|object_type|reference_type|See https?://\S+)[^\n]*", "", bare_text
    )
    return " ".join(text.split()).removeprefix("UserError raised while resolving interpolation: ")


@contextmanager
def user_settings() -> Iterator[None]:
    """Report an object's refusal of its settings as a mistake of the user.

    Raises:
        UserError: With the object's message.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def run_folder() -> Path:
    """Return the folder of this run, which Hydra has created."""
    return Path(HydraConfig.get().runtime.output_dir)


def refuse_several() -> None:
    """Refuse ``-m``, and several processes, for a command whose outputs they would share.

    Raises:
        UserError: There are several jobs or processes.
    """
    refuse_launcher()
    if jobs.in_a_sweep():
        raise UserError("this command takes no -m; give it lists, such as 'sampler.steps=[5,10]'")


def refuse_launcher() -> None:
    """Refuse a launcher that has started several processes.

    Raises:
        UserError: A launcher has started several processes.
    """
    launch = launchers.launch()
    if launch is not None and launch.are_several:
        raise UserError(
            f"{launch.what}, but this command runs in one process: start it without a launcher"
        )
