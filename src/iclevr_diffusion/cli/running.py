"""A training run: its data, its loggers and its folder."""

import os
from collections.abc import Iterator, Sequence
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
from iclevr_diffusion.cli.validate import TARGET, find_target, parameters
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.callbacks.checkpoint import BEST, LAST
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.fit import check_limits
from iclevr_diffusion.training.loggers import MetricsCSV, alert, check_logger, close_loggers
from iclevr_diffusion.training.resume import ResumePoint, find_checkpoint, is_finished
from iclevr_diffusion.utils.errors import TrainingError, UserError
from iclevr_diffusion.utils.files import CONFIG, is_used, remove_partial, used_alone, write_text
from iclevr_diffusion.utils.lightning_internals import callbacks_of
from iclevr_diffusion.utils.status import STATUS, read_status, status_kept
from iclevr_diffusion.utils.text import in_shell


def check_loggers(cfg: DictConfig) -> None:
    """Check the packages and the settings of the loggers before the run begins.

    Raises:
        UserError: A package is missing, or a logger refuses its settings.
    """
    for name, node in cfg.logger.items():
        if node is not None:
            check_logger(find_target(node[TARGET], f"logger.{name}"), plain(node))


def start_loggers(cfg: DictConfig, folder: Path) -> Iterator[Logger]:
    """Start the logger of ``metrics.csv``, and those of the config, one by one."""
    yield MetricsCSV(folder / "metrics.csv")
    for name, node in cfg.logger.items():
        if node is not None:
            path = f"logger.{name}"
            yield instantiate(node, path, folder=folder, **missing_folder(node, folder))


def unfinished_run(folder: Path, overrides: Sequence[str]) -> Path | None:
    """Return the newest run beside a new one that has the same overrides and can be resumed.

    Returns:
        A folder with a checkpoint, whose run was stopped, failed or killed; None if there is none.
    """
    others = [path.parent for path in folder.parent.glob(f"*/{STATUS}") if path.parent != folder]
    for run in sorted(others, key=lambda run: (run / STATUS).stat().st_mtime, reverse=True):
        status = read_status(run)
        is_same = _without_resume(status.get("overrides")) == _without_resume(overrides)
        is_over = status.get("status") == "finished" or is_used(run)
        if is_same and (run / "checkpoints" / LAST).is_file() and not is_over:
            return run
    return None


def _without_resume(overrides: object) -> list[str]:
    words = overrides if isinstance(overrides, list | tuple) else []
    return sorted(str(word) for word in words if not str(word).startswith("resume="))


def mention_unfinished(folder: Path) -> None:
    """Print how to resume an unfinished run of the same command, if there is one."""
    run = unfinished_run(folder, overrides())
    if run is not None:
        run = Path(os.path.relpath(run))
        name = in_shell(run)
        print(f"{run}: an unfinished run of this command; resume={name} continues it instead")


def missing_folder(node: DictConfig, folder: Path) -> dict[str, str]:
    """Return the run folder as ``save_dir``, for a logger that requires one."""
    known, _ = parameters(find_target(node[TARGET], "logger"))
    argument = known.get("save_dir")
    is_needed = argument is not None and argument.default is argument.empty
    return {"save_dir": str(folder)} if is_needed else {}


def prepare(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    datamodule: DataModule | EvaluatorData,
    settings: dict[str, Any],
) -> ResumePoint | None:
    """Check and prepare the data, so that problems are reported before the run begins.

    Returns:
        The checkpoint to resume from; None to start.

    Raises:
        UserError: Something in the data is wrong, or the run cannot be resumed.
    """
    datamodule.check(trainer.world_size)
    check_limits(trainer, datamodule.batches(trainer.world_size))
    resumed = find_checkpoint(folder, settings, trainer.world_size) if is_resumed(cfg) else None
    if resumed is not None and is_finished(trainer, resumed):
        check_scored(trainer, resumed)
    datamodule.prepare_data()
    return resumed


def check_scored(trainer: L.Trainer, finished: ResumePoint) -> None:
    """Check that a run, finished by its limits, has weights that were scored.

    Raises:
        UserError: The limits were lowered before the first scoring.
    """
    if callbacks_of(trainer, Scoring) and not (finished.path.parent / BEST).exists():
        epochs, steps = finished.content["progress"]["epoch"] + 1, finished.steps
        raise UserError(
            f"resume: {finished.path} has {epochs} epochs and {steps} steps, which were never"
            " scored; set trainer.max_epochs, max_steps or max_time to more than that"
        )


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
        trainer.loggers = []
        exit_code = 1
        try:
            for logger in start_loggers(cfg, folder):
                trainer.loggers = [*trainer.loggers, logger]  # closed even if the next one fails
            yield
            exit_code = 0
        except TrainingError as error:
            alert(trainer.loggers, "training failed", str(error))
            raise
        finally:
            close_loggers(trainer.loggers, exit_code)
