"""Loggers: ``metrics.csv`` in every run folder; W&B, TensorBoard or others on request."""

from iclevr_diffusion.training.loggers.all_loggers import close_loggers, log_image, resume_logging
from iclevr_diffusion.training.loggers.metrics_csv import MetricsCSV, read_metrics
from iclevr_diffusion.training.loggers.tensorboard import TensorBoard, tensorboard_logger
from iclevr_diffusion.training.loggers.wandb_run import WandbRun, wandb_logger
from iclevr_diffusion.training.loggers.wandb_settings import check_wandb_settings

__all__ = [
    "MetricsCSV",
    "TensorBoard",
    "WandbRun",
    "check_wandb_settings",
    "close_loggers",
    "log_image",
    "read_metrics",
    "resume_logging",
    "tensorboard_logger",
    "wandb_logger",
]
