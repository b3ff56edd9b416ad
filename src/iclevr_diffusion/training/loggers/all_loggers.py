"""Operations on all loggers of a run: resume, images, alerts, weights, the end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image

from iclevr_diffusion.training.loggers.logs_once import LogsOnce
from iclevr_diffusion.training.loggers.metrics_csv import MetricsCSV
from iclevr_diffusion.training.loggers.scored_images import ScoredImages
from iclevr_diffusion.training.loggers.tensorboard import TensorBoard
from iclevr_diffusion.training.loggers.wandb_run import WandbRun


def close_loggers(loggers: Sequence[Logger], exit_code: int) -> None:
    """End the runs of tracking services, so that the next job of a sweep starts others."""
    for logger in loggers:
        if isinstance(logger, LogsOnce):
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
        elif isinstance(logger, LogsOnce):
            logger.fill(rows)


@runtime_checkable
class ShowsImages(Protocol):
    """A logger with the method for images that Lightning's W&B logger has."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images under a name."""


def log_image(loggers: Sequence[Logger], key: str, image: Image.Image, step: int) -> None:
    """Log an image under a name such as ``sample/grid`` to the loggers that can show images.

    A custom logger can show images if it has a method ``log_image(key, images, step)``. Lightning's
    other loggers share no method for images.
    """
    for logger in loggers:
        if isinstance(logger, ShowsImages):
            logger.log_image(key, [image], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, key=key, step=step)
        elif isinstance(logger, CometLogger):
            logger.experiment.log_image(image, name=key, step=step)


def log_scored_images(loggers: Sequence[Logger], key: str, scored: ScoredImages, step: int) -> None:
    """Log a table of images, of what was requested and of what is shown, to W&B."""
    for logger in _wandb_runs(loggers):
        logger.log_scored_images(key, scored, step)


def log_checkpoint(loggers: Sequence[Logger], path: Path, epoch: int, step: int) -> None:
    """Log the best checkpoint so far to W&B, if ``log_model`` is ``all``."""
    for logger in _wandb_runs(loggers):
        if logger.log_model == "all":
            about = {"epoch": epoch, "step": step}
            logger.log_files("checkpoint", [path], ["best", f"epoch-{epoch}"], about)


def log_weights(
    loggers: Sequence[Logger], paths: Sequence[Path], epoch: int, scores: Mapping[str, float]
) -> None:
    """Log the weights of a finished training, and what describes them, to W&B on request."""
    for logger in _wandb_runs(loggers):
        if logger.log_model:
            about = {"epoch": epoch, **scores}
            logger.log_files("model", paths, ["best", f"epoch-{epoch}"], about)


def alert(loggers: Sequence[Logger], title: str, text: str) -> None:
    """Send an alert by W&B."""
    for logger in _wandb_runs(loggers):
        logger.alert(title, text)


def _wandb_runs(loggers: Sequence[Logger]) -> Iterator[WandbRun]:
    return (logger for logger in loggers if isinstance(logger, WandbRun))
