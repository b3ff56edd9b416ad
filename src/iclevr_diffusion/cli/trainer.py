"""The trainer of a run, from its settings."""

import logging
import warnings
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from iclevr_diffusion.cli.instantiate import named, plain
from iclevr_diffusion.cli.trainer_settings import (
    check_precision,
    check_trainer,
    profiler,
    strategy,
)
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.callbacks.checkpoint import AtomicCheckpointIO
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.distributed import are_several
from iclevr_diffusion.utils.errors import UserError


def make_trainer(
    cfg: DictConfig, folder: Path, callbacks: list[L.Callback], gan: bool = False
) -> L.Trainer:
    """Make the trainer of a run, without loggers: those are opened last.

    Raises:
        UserError: Lightning refuses a setting.
        ValueError: A number is below 1.
    """
    _quiet_lightning()
    settings = plain(cfg.trainer)
    check_trainer(settings)
    # callbacks.limits and shorten() see to these.
    for name in ("max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run"):
        del settings[name]
    if settings["max_epochs"] is None:
        settings["max_epochs"] = -1
    if settings["profiler"] is not None:
        settings["profiler"] = profiler(settings["profiler"], folder / "profile")
    if settings["enable_model_summary"]:
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)
    several = are_several(settings["devices"], settings["num_nodes"])
    settings["strategy"] = strategy(settings["strategy"], several, gan)
    known = launchers.given_devices(settings["devices"])
    if known is not None:
        launchers.check_processes(known, settings["num_nodes"])
    precision = settings.pop("precision")
    precision = check_precision(precision, settings["accelerator"])
    try:
        trainer = L.Trainer(
            **settings,
            precision=precision,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), launchers.cluster_environment()],
            default_root_dir=folder,  # under SLURM, Lightning would take what it finds elsewhere
            logger=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        asked = settings["accelerator"]
        advice = "" if asked in ("auto", "cpu") else "; trainer=auto uses what this machine has"
        raise UserError(f"trainer: {error}{advice}") from error
    launchers.check_processes(trainer.num_devices, settings["num_nodes"])
    launchers.meet()
    return trainer


def limits(cfg: DictConfig) -> Limits:
    """Return the callback that ends the training by steps or time.

    Raises:
        ValueError: A setting is out of range.
    """
    settings = plain(cfg.trainer)
    names = ("max_steps", "max_time", "min_epochs", "min_steps")
    given = {name: settings[name] for name in names}
    with named("trainer", {name: f"trainer.{name}" for name in names}):
        return Limits(**given, every_n_steps=settings["log_every_n_steps"])


def _quiet_lightning() -> None:
    """Silence Lightning's messages about itself and about short epochs; keep its warnings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        r"`isinstance\(treespec",
        r"The number of training batches",
        r"The '\w+_dataloader' does not have many workers",
        r"Starting from v1.9.0, `tensorboardX`",
        r"torch\.distributed\.nn\.functional\.all_gather is deprecated",
    ):
        warnings.filterwarnings("ignore", message)
