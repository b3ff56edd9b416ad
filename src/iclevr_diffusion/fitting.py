"""Fit a module, from its run's checkpoint where there is one."""

import time
from pathlib import Path
from typing import Any

import lightning as L

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.export import read_checkpoint
from iclevr_diffusion.loggers import MetricsCSV
from iclevr_diffusion.modules.optimizer import TrainedModule


def find_checkpoint(resume: bool, folder: Path, module: TrainedModule) -> Path | None:
    """The checkpoint to go on from; None for a run that begins.

    Raises:
        UserError: the checkpoint is damaged, or of another model.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not resume or not path.is_file():
        return None
    saved = read_checkpoint(path)["model"]
    for part, settings in module.description().items():
        if saved.get(part) != settings:
            raise UserError(
                f"resume: {path} was trained with {part} {saved.get(part)}, not {settings}"
            )
    return path


def fit(
    trainer: L.Trainer,
    module: TrainedModule,
    datamodule: L.LightningDataModule,
    checkpoint: Path | None,
    hyperparameters: dict[str, Any],
) -> float | None:
    """Train; tells the seconds it took, or None where the run was finished before, and says so."""
    steps_before = 0
    if checkpoint is not None:
        steps_before = read_checkpoint(checkpoint)["global_step"]
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.restore(steps_before)
    for logger in trainer.loggers:
        logger.log_hyperparams(hyperparameters)
    start = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.global_step > steps_before:
        return time.perf_counter() - start
    if trainer.is_global_zero:
        print(f"this run is finished: {steps_before} steps; raise trainer.max_epochs to go on")
    return None
