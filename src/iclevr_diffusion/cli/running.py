"""A training run: its loggers and its folder."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.cli.instantiate import instantiate, plain
from iclevr_diffusion.cli.jobs import in_a_sweep
from iclevr_diffusion.cli.overrides import overrides
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.unfinished import unfinished_run
from iclevr_diffusion.cli.validate import TARGET, find_target, parameters
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.loggers import LOGGER_CHECKS, MetricsCSV, alert, close_loggers
from iclevr_diffusion.utils.errors import TrainingError, UserError
from iclevr_diffusion.utils.files import CONFIG, remove_partial, used_alone, write_text
from iclevr_diffusion.utils.lightning_internals import callbacks_of
from iclevr_diffusion.utils.status import status_kept


def without_target(node: DictConfig) -> dict[str, Any]:
    """Return the settings of a node, without its class."""
    return {name: value for name, value in plain(node).items() if name != TARGET}


def check_loggers(cfg: DictConfig) -> None:
    """Check the packages and the settings of the loggers before the run begins.

    Raises:
        UserError: a package is missing, or a logger refuses its settings.
    """
    for name, node in cfg.logger.items():
        if node is not None:
            check = LOGGER_CHECKS.get(find_target(node[TARGET], f"logger.{name}"))
            if check is not None:
                check(**without_target(node))


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """``metrics.csv`` always, and each logger of the config."""
    result: list[Logger] = [MetricsCSV(folder / "metrics.csv")]
    for name, node in cfg.logger.items():
        if node is not None:
            path = f"logger.{name}"
            result.append(instantiate(node, path, folder=folder, **missing_folder(node, folder)))
    return result


def mention_unfinished(folder: Path) -> None:
    """Print how to resume an unfinished run of the same command, if there is one."""
    run = unfinished_run(folder, overrides())
    if run is not None:
        run = Path(os.path.relpath(run))
        print(f"{run}: an unfinished run of this command; resume={run} continues it instead")


def missing_folder(node: DictConfig, folder: Path) -> dict[str, str]:
    """Return the run folder, for a logger of Lightning's that must be told a ``save_dir``."""
    known, _ = parameters(find_target(node[TARGET], "logger"))
    needs = "save_dir" in known and known["save_dir"].is_required
    return {"save_dir": str(folder)} if needs else {}


@contextmanager
def running(cfg: DictConfig, folder: Path, trainer: L.Trainer) -> Iterator[None]:
    """Lock the run folder, write the settings and keep the loggers open within the block.

    Raises:
        UserError: Another process runs there.
        TrainingError: The training has failed; W&B sends an alert.
    """
    with ExitStack() as stack:
        if trainer.is_global_zero:
            stack.enter_context(used_alone(folder))
            if is_resumed(cfg):
                remove_partial(folder)
            elif (folder / CONFIG).exists():
                raise UserError(f"{folder}: another run has begun there; name another folder")
            elif not in_a_sweep():
                mention_unfinished(folder)
            write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
            if not in_a_sweep():  # its jobs keep theirs from before the first check
                launcher = launchers.torchrun_id()
                more = {} if launcher is None else {"launcher": launcher}
                stack.enter_context(status_kept(folder, overrides(), **more))
        for callback in callbacks_of(trainer, StopOnSignal):
            stack.enter_context(callback.handled(trainer))
        trainer.loggers = build_loggers(cfg, folder)
        exit_code = 1
        try:
            yield
            exit_code = 0
        except TrainingError as error:
            alert(trainer.loggers, "training failed", str(error))
            raise
        finally:
            close_loggers(trainer.loggers, exit_code)
