"""Loggers: ``metrics.csv`` in every run folder; W&B, TensorBoard or others on request.

``LOGGER_CHECKS`` has the check of a logger's settings, which is called before a run begins.
"""

from collections.abc import Callable
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
from iclevr_diffusion.training.loggers.comet_run import CometRun, check_comet, comet_logger
from iclevr_diffusion.training.loggers.metrics_csv import MetricsCSV, read_metrics
from iclevr_diffusion.training.loggers.mlflow_run import MLflowRun, check_mlflow, mlflow_logger
from iclevr_diffusion.training.loggers.scored_images import ScoredImages
from iclevr_diffusion.training.loggers.show_image import show_image
from iclevr_diffusion.training.loggers.tensorboard import (
    TensorBoard,
    check_tensorboard,
    tensorboard_logger,
)
from iclevr_diffusion.training.loggers.wandb_run import WandbRun, wandb_logger
from iclevr_diffusion.training.loggers.wandb_settings import check_wandb_settings

LOGGER_CHECKS: dict[Callable[..., Any], Callable[..., None]] = {
    comet_logger: check_comet,
    mlflow_logger: check_mlflow,
    tensorboard_logger: check_tensorboard,
    wandb_logger: check_wandb_settings,
}

__all__ = [
    "LOGGER_CHECKS",
    "CometRun",
    "MLflowRun",
    "MetricsCSV",
    "ScoredImages",
    "TensorBoard",
    "WandbRun",
    "alert",
    "check_wandb_settings",
    "close_loggers",
    "comet_logger",
    "log_checkpoint",
    "log_image",
    "log_scored_images",
    "log_weights",
    "mlflow_logger",
    "read_metrics",
    "resume_logging",
    "show_image",
    "tensorboard_logger",
    "wandb_logger",
]
