"""The decorator of all commands: composition by Hydra, and errors in one line."""

import functools
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.cli import jobs, sweep
from iclevr_diffusion.cli.composition import composed_once, quick_help
from iclevr_diffusion.cli.ending import (
    ENDS_WITH_A_LINE,
    end,
    ends_by_signals,
    ends_with_a_line,
    error_in_a_line,
    exit_code,
)
from iclevr_diffusion.cli.hydra_errors import explained, refuse_lists, refuse_unknown_flags
from iclevr_diffusion.cli.overrides import SWEEP_FLAGS, overridden, quoted
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.schema import names_of_paths, names_of_texts
from iclevr_diffusion.cli.validate import UnknownSetting, check_config
from iclevr_diffusion.training import launchers
from iclevr_diffusion.utils.errors import Stopped, TrainingError, UserError
from iclevr_diffusion.utils.folders import remove_if_empty
from iclevr_diffusion.utils.status import status_after
from iclevr_diffusion.utils.terminal import VERSION_FLAG, make_safe, version_line

PACKAGE = Path(__file__).parents[1]
PACKAGED_CONF = PACKAGE / "conf"
CONF = PACKAGED_CONF if PACKAGED_CONF.is_dir() else PACKAGE.parents[1] / "conf"
DEBUG_FLAG = "--debug"
HELP_FLAGS = {"--help", "-h"}
FULL_ERROR = "HYDRA_FULL_ERROR"
INSIDE = "ICLEVR_DIFFUSION_COMMAND"

# The files in conf/hydra/launcher have the names of plugins: Hydra fills in missing settings, and
# warns that a later version will not.
warnings.filterwarnings(
    "ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema"
)

Task = Callable[[DictConfig], float | None]
_tasks: dict[str, tuple[Task, type]] = {}  # of the commands that this process has loaded


def command(config_name: str, schema: type) -> Callable[[Task], Callable[[], None]]:
    """Turn a function of a composed config into a program.

    The function returns its score, which a search maximizes, or None.

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
            config = CONF / f"{config_name}.yaml"
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            with (
                _hydra_raises(schema) as debug,
                ends_with_a_line(debug),
                ends_by_signals(),
                explained(config, schema),
                sweep.reported(),
            ):
                refuse_unknown_flags(sys.argv[1:], config, schema)
                refuse_lists(sys.argv[1:], config)
                is_help = bool(HELP_FLAGS & {*sys.argv[1:]})
                with quick_help() if is_help else composed_once():
                    run(_job(config_name, debug))()

        return main

    return decorate


@contextmanager
def _hydra_raises(schema: type) -> Iterator[bool]:
    """Let Hydra raise its errors instead of printing them, and quote its arguments.

    Yields:
        Whether the user wants tracebacks.
    """
    # Processes that this one starts inherit its environment, which is not the user's.
    inherited = os.environ.get(INSIDE)
    users = os.environ.get(FULL_ERROR) if inherited is None else None
    debug = DEBUG_FLAG in sys.argv or users == "1" or inherited == "debug"
    program, *arguments = (word for word in sys.argv if word != DEBUG_FLAG)
    # Hydra's parser takes this flag before or after the overrides, but not among them.
    arguments = quoted(arguments, names_of_paths(schema), names_of_texts(schema))
    arguments = sorted(arguments, key=lambda word: word not in SWEEP_FLAGS)
    sys.argv[:] = [program, *(_trainer_word(word, schema) for word in arguments)]
    os.environ[FULL_ERROR] = "1"
    os.environ[INSIDE] = "debug" if debug else "1"
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
                jobs.note_refused(error_in_a_line(error))
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
            end(error)

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
            jobs.note(
                folder, status_after(error), error_in_a_line(error), exit_code=exit_code(error)
            )
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
    try:
        check_config(cfg, schema)
    except UnknownSetting as error:
        raise UserError(f"{error}{_of_the_experiment(error.setting)}") from error
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


def _of_the_experiment(setting: str) -> str:
    """Say that the experiment sets an unknown setting, for another option than the chosen one."""
    composed = HydraConfig.get()
    experiment = composed.runtime.choices.get("experiment")
    given, group = overridden(), setting.partition(".")[0]
    if setting in given or group not in given:
        return ""
    for source in composed.runtime.config_sources:
        path = Path(source.path, "experiment", f"{experiment}.yaml")
        if path.is_file() and OmegaConf.select(OmegaConf.load(path), setting) is not None:
            return f" (experiment={experiment} sets it for its own {group}; ~{setting} removes it)"
    return ""


def run_folder() -> Path:
    """Return the folder of this run, which Hydra has created."""
    return Path(HydraConfig.get().runtime.output_dir)


def refuse_several(advice: str = "run it once for each value") -> None:
    """Refuse ``-m``, and several processes, for a command whose outputs they would share.

    Args:
        advice: What to do instead of ``-m``.

    Raises:
        UserError: There are several jobs or processes.
    """
    refuse_launcher()
    if jobs.in_a_sweep():
        raise UserError(f"this command takes no -m; {advice}")


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
