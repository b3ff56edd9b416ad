"""Operations on all loggers of a run: resume, images, the end."""

from collections.abc import Sequence

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from iclevr_diffusion.training.loggers.metrics_csv import MetricsCSV
from iclevr_diffusion.training.loggers.tensorboard import TensorBoard
from iclevr_diffusion.training.loggers.wandb_run import WandbRun


def close_loggers(loggers: Sequence[Logger], exit_code: int) -> None:
    """End a W&B run with its exit code, so that the next job of a sweep starts another one."""
    for logger in loggers:
        if isinstance(logger, WandbRun):
            logger.finish(exit_code)


def resume_logging(loggers: Sequence[Logger], steps: int) -> None:
    """Resume after the first ``steps`` optimizer steps; later ones will be logged again."""
    rows: list[dict[str, float]] = []
    for logger in loggers:
        if isinstance(logger, MetricsCSV) and steps > 0:
            logger.restore(steps)
            rows = logger.rows
        elif isinstance(logger, TensorBoard):
            logger.purge(steps)
        elif isinstance(logger, WandbRun):
            logger.fill(rows)


def log_image(loggers: Sequence[Logger], key: str, image: Image.Image, step: int) -> None:
    """Log an image to the loggers that take images."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")
