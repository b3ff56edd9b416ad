"""Checks of the trainer's settings: numbers, precision, strategy, profiler."""

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from lightning.pytorch.strategies import StrategyRegistry

from iclevr_diffusion.utils.checks import check_at_least, check_choice
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


def check_trainer(settings: dict[str, Any]) -> None:
    """Check the numbers of the trainer's settings that Lightning takes as they are.

    Raises:
        ValueError: One is out of range, or the training would have no end.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        check_at_least(f"trainer.{name}", settings[name], 1)
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


def check_precision(precision: int | str, accelerator: str) -> Any:
    """Return Lightning's precision for ``trainer.precision``.

    Raises:
        ValueError: There is no such precision, or it does not work on this accelerator.
    """
    check_choice("trainer.precision", str(precision), PRECISIONS)
    if str(precision) in ("16", "16-mixed") and not is_on_cuda(accelerator):
        raise ValueError(
            f"trainer.precision={precision} needs a CUDA GPU; use trainer.precision=auto or 32-true"
        )
    return best_precision(accelerator) if precision == "auto" else precision


def is_on_cuda(accelerator: str) -> bool:
    """Return whether Lightning trains on a CUDA GPU with that ``trainer.accelerator``."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def best_precision(accelerator: str) -> Precision:
    """Return ``bf16-mixed`` where the hardware multiplies in bfloat16, else the fastest precision.

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
    """Return Lightning's strategy of that name, if a run can use it.

    Args:
        several: Whether there are several processes, as far as is known.
        gan: Whether each loss leaves one network out.

    Raises:
        UserError: There is no such strategy, or its processes cannot train here.
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
                f"trainer.strategy={name}: each loss of a GAN uses one network only; use ddp"
            )
        return STRATEGIES[-1] if gan and several and lower in ("auto", "ddp") else lower
    if lower not in known:
        close = closest(lower, STRATEGIES)
        advice = f"did you mean {close[0]}?" if close else f"use {', '.join(STRATEGIES)}"
        raise UserError(f"trainer.strategy={name}: there is no such strategy; {advice}")
    if lower.startswith(("fsdp", "deepspeed")):
        why = "shards the weights among devices, but EMA and checkpoints need them whole"
    elif lower.startswith("ddp_"):
        why = "copies this process with its open files; ddp starts the command once per device"
    else:
        why = "is for one kind of device; auto chooses it where it fits"
    instead = "ddp" if lower.startswith(("fsdp", "deepspeed", "ddp")) or several else "auto"
    raise UserError(f"trainer.strategy={name} {why}: use trainer.strategy={instead}")


def profiler(name: str, folder: Path) -> Profiler:
    """Return Lightning's profiler of that name, which writes to ``folder``.

    Raises:
        ValueError: There is none.
    """
    kinds: dict[str, type[SimpleProfiler | AdvancedProfiler | PyTorchProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    check_choice("trainer.profiler", name, kinds)
    return kinds[name](dirpath=folder, filename=name)
