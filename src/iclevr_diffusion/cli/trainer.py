"""The trainer of a run, from its settings: devices, precision, strategy, limits."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig

from iclevr_diffusion.cli.instantiate import named, plain
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.callbacks.checkpoint import AtomicCheckpointIO
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.distributed import are_several
from iclevr_diffusion.utils.closest import closest
from iclevr_diffusion.utils.errors import UserError

Precision = Literal["bf16-mixed", "16-mixed", "32-true"]
STRATEGIES = (
    "auto",
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
)
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32")


def make_trainer(
    cfg: DictConfig, folder: Path, callbacks: list[L.Callback], gan: bool = False
) -> L.Trainer:
    """Make the trainer of a run, without loggers: those are opened last.

    Args:
        cfg: The settings of the whole run.
        folder: Of the run.
        callbacks: All of them.
        gan: Whether each loss leaves one network out.

    Raises:
        UserError: Lightning refuses a setting.
        ValueError: a number is below 1.
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
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error
    launchers.check_processes(trainer.num_devices, settings["num_nodes"])
    launchers.meet()
    return trainer


def check_precision(precision: int | str, accelerator: str) -> Any:
    """Return Lightning's precision for ``trainer.precision``.

    Raises:
        ValueError: There is no such precision, or it does not work on this accelerator.
    """
    if str(precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)}; got {precision}"
        )
    if str(precision) in ("16", "16-mixed") and not is_on_cuda(accelerator):
        raise ValueError(
            f"trainer.precision={precision} needs a CUDA GPU; use trainer.precision=auto or 32-true"
        )
    return best_precision(accelerator) if precision == "auto" else precision


def is_on_cuda(accelerator: str) -> bool:
    """Whether Lightning trains on a CUDA GPU with that ``trainer.accelerator``."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def best_precision(accelerator: str) -> Precision:
    """``bf16-mixed`` where the hardware multiplies in bfloat16, else the fastest that it does.

    That is ``16-mixed``, with a scaled loss, on CUDA GPUs before Ampere, else ``32-true``.
    """
    if is_on_cuda(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    # Where a processor only emulates bfloat16, it is hundreds of times slower.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    native = native or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if native else "32-true"


def strategy(name: str, several: bool, gan: bool) -> str:
    """Lightning's strategy of that name, if it is one that a run can use.

    Args:
        several: whether there are several processes, as far as is known.
        gan: whether each loss leaves one network out.

    Raises:
        UserError: there is no such strategy, or its processes cannot train here.
    """
    known, lower = StrategyRegistry.available_strategies(), name.lower()
    if several and hasattr(sys, "ps1"):
        raise UserError(
            "several devices need a process for each, which a notebook or an interactive Python"
            " cannot start: run the command in a terminal, or use trainer.devices=1"
        )
    if lower in STRATEGIES:
        if gan and lower == "ddp_find_unused_parameters_false":
            raise UserError(
                f"trainer.strategy={name}: each loss of a GAN leaves one net out; use ddp"
            )
        return STRATEGIES[-1] if gan and several and lower in ("auto", "ddp") else lower
    if lower not in known:
        close = closest(lower, STRATEGIES)
        advice = f"did you mean {close[0]}?" if close else f"use {', '.join(STRATEGIES)}"
        raise UserError(f"trainer.strategy={name}: there is no such strategy; {advice}")
    if lower.startswith(("fsdp", "deepspeed")):
        why = "shares the weights out among devices, but EMA and checkpoints need them whole"
    elif lower.startswith("ddp_"):
        why = "copies this process, open files and all, where ddp starts the command once a device"
    else:
        why = "is for one kind of device, and auto chooses it where it is right"
    instead = "ddp" if lower.startswith(("fsdp", "deepspeed", "ddp")) or several else "auto"
    raise UserError(f"trainer.strategy={name} {why}: use trainer.strategy={instead}")


def check_trainer(settings: dict[str, Any]) -> None:
    """Check the numbers of the trainer's settings that Lightning takes as they are.

    Raises:
        ValueError: one is out of range, or the training would have no end.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        check_at_least_1(f"trainer.{name}", settings[name])
    if not settings["limit_train_batches"] > 0:
        raise ValueError(
            f"trainer.limit_train_batches must be above 0, got {settings['limit_train_batches']}"
        )
    if not settings["val_check_interval"] > 0:
        raise ValueError(
            f"trainer.val_check_interval must be above 0, got {settings['val_check_interval']};"
            " trainer.limit_val_batches=0 leaves validation out"
        )
    if settings["num_sanity_val_steps"] < -1:
        raise ValueError(
            "trainer.num_sanity_val_steps must be 0 or more, or -1 for all; got"
            f" {settings['num_sanity_val_steps']}"
        )
    epochs = settings["max_epochs"]
    if epochs is None or epochs == -1:
        if settings["max_steps"] == -1 and settings["max_time"] is None:
            raise ValueError(
                f"trainer.max_epochs={'null' if epochs is None else epochs} would train without"
                " end: set trainer.max_steps or trainer.max_time, too"
            )
    elif epochs < 1:
        raise ValueError(f"trainer.max_epochs must be at least 1, or -1; got {epochs}")
    elif epochs < (settings["min_epochs"] or 0):
        raise ValueError(
            f"trainer.min_epochs={settings['min_epochs']} is more than trainer.max_epochs={epochs}"
        )


def check_at_least_1(name: str, value: int) -> None:
    """Check that a setting is at least 1.

    Raises:
        ValueError: The value is smaller.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def profiler(name: str, folder: Path) -> Profiler:
    """Lightning's profiler of that name; it writes to ``folder``.

    Raises:
        ValueError: there is none.
    """
    kinds: dict[str, type[SimpleProfiler | AdvancedProfiler | PyTorchProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    if name not in kinds:
        raise ValueError(f"trainer.profiler must be one of {', '.join(kinds)}; got {name!r}")
    return kinds[name](dirpath=folder, filename=name)


def limits(cfg: DictConfig) -> Limits:
    """Return the callback that ends the training by steps or time.

    Raises:
        ValueError: a setting is out of range.
    """
    settings = plain(cfg.trainer)
    names = ("max_steps", "max_time", "min_epochs", "min_steps")
    given = {name: settings[name] for name in names}
    with named("trainer", {name: f"trainer.{name}" for name in names}):
        return Limits(**given, every_n_steps=settings["log_every_n_steps"])


def shorten(cfg: DictConfig) -> None:
    """Let a run with ``trainer.fast_dev_run=n`` do n of everything: batches, samples, steps.

    Unlike Lightning, which leaves checkpoints out, such a run does all that a long one does. Only
    the loggers that the command line asks for are enabled.

    Raises:
        UserError: n is negative.
    """
    n = int(cfg.trainer.fast_dev_run)
    if n < 0:
        raise UserError(f"trainer.fast_dev_run must be true, false or at least 0, got {n}")
    if n == 0:
        return
    cfg.trainer.update(
        max_epochs=1,
        max_steps=-1,
        max_time=None,
        min_epochs=None,
        min_steps=None,
        limit_train_batches=n,
        limit_val_batches=n,
        check_val_every_n_epoch=1,
        val_check_interval=1.0,
        log_every_n_steps=1,
    )
    cfg.name = "debug"
    if not any(word.lstrip("+").startswith("logger") for word in overrides()):
        cfg.logger.update(dict.fromkeys(cfg.logger))
    if "published" in cfg:
        cfg.published = None
    scoring = cfg.callbacks.get("scoring")
    if scoring is not None and "max_conditions" in scoring:
        scoring.max_conditions = n
        if "steps" in (scoring.get("sampler") or {}):
            scoring.sampler.steps = min(scoring.sampler.steps, max(2, n))


def overrides() -> list[str]:
    """Return the overrides of the command line, except for Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def _quiet_lightning() -> None:
    """Silence Lightning's messages about itself and about short epochs; keep its warnings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        r"`isinstance\(treespec",
        r"The number of training batches",
        r"The '\w+_dataloader' does not have many workers",
        r"Starting from v1.9.0, `tensorboardX`",
    ):
        warnings.filterwarnings("ignore", message)
