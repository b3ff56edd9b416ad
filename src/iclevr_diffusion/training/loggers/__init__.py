"""Loggers: ``metrics.csv`` in every run folder; W&B, TensorBoard or others on request.

:func:`check_logger` checks a logger before a run begins.
"""

from collections.abc import Callable, Mapping
from typing import Any

from iclevr_diffusion.training.loggers.all_loggers import (
    alert,
    close_loggers,
    log_checkpoint,
    log_image,
    log_scored_images,
    log_weights,
    resume_logging,
)
from iclevr_diffusion.training.loggers.comet_run import CometRun, comet_logger
from iclevr_diffusion.training.loggers.metrics_csv import MetricsCSV, read_metrics
from iclevr_diffusion.training.loggers.mlflow_run import MLflowRun, mlflow_logger
from iclevr_diffusion.training.loggers.packages import check_installed
from iclevr_diffusion.training.loggers.scored_images import ScoredImages
from iclevr_diffusion.training.loggers.tensorboard import TensorBoard, tensorboard_logger
from iclevr_diffusion.training.loggers.wandb_run import WandbRun, wandb_logger
from iclevr_diffusion.training.loggers.wandb_settings import check_wandb

# The loggers that need a package, by :data:`~.packages.PACKAGES`.
NEEDS = {comet_logger: "comet", mlflow_logger: "mlflow", tensorboard_logger: "tensorboard"}


def check_logger(logger: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Check the package and the settings of a logger; those of other packages are not checked.

    Raises:
        UserError: The package is missing, or a setting is wrong.
    """
    if logger is wandb_logger:
        check_wandb(settings)
    elif logger in NEEDS:
        check_installed(NEEDS[logger])


__all__ = [
    "CometRun",
    "MLflowRun",
    "MetricsCSV",
    "ScoredImages",
    "TensorBoard",
    "WandbRun",
    "alert",
    "check_logger",
    "check_wandb",
    "close_loggers",
    "comet_logger",
    "log_checkpoint",
    "log_image",
    "log_scored_images",
    "log_weights",
    "mlflow_logger",
    "read_metrics",
    "resume_logging",
    "tensorboard_logger",
    "wandb_logger",
]
