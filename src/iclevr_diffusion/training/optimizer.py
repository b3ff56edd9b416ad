"""Optimizer, learning-rate schedule and gradient clipping, as settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from iclevr_diffusion.training.muon import Muon
from iclevr_diffusion.utils.checks import check_at_least, check_choice, check_positive, check_share

TAIL = 0.2  # share of the steps in which a trapezoid falls
DECAYS: dict[str, Callable[[float], float]] = {  # factor by share of the steps done
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "trapezoid": lambda progress: min(1.0, (1 - progress) / TAIL),
}


@runtime_checkable
class HasInnerWeights(Protocol):
    """A network that can be trained by Muon."""

    def inner_weights(self) -> list[nn.Parameter]:
        """Return the weights of layers that map features to features."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimizer, learning-rate schedule and gradient clipping.

    Attributes:
        name: ``adamw``, ``adam``, or ``muon``: Muon for the weights inside the network, AdamW for
            the others.
        lr, lr_multiplier: Their product is the learning rate after warm-up.
        matrix_lr: Muon's learning rate, instead of ``lr``; None for other optimizers.
        betas, weight_decay, eps: As in the optimizer.
        warmup_steps: Optimizer steps in which the learning rate rises linearly from zero.
        decay: ``constant``; ``cosine``; or ``trapezoid``: constant, then linear over the last fifth
            of the steps (Hägele et al. 2024, arXiv 2405.18392). It works as well as ``cosine``, and
            the number of steps can be changed until the fall begins.
        final_lr_fraction: Share of the learning rate that is left one step after the last.
        clip_norm: Maximum global norm of the gradient; None to log the norm only.

    Raises:
        ValueError: A setting is out of range.
    """

    name: str = "adamw"
    lr: float = 1e-4
    lr_multiplier: float = 1.0
    matrix_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-8
    warmup_steps: int = 0
    decay: str = "constant"
    final_lr_fraction: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "adam", "muon"):
            raise ValueError(f"name must be adamw, adam or muon, got {self.name!r}")
        if (self.matrix_lr is not None) != (self.name == "muon"):
            raise ValueError("matrix_lr is for optimizer=muon, and required there")
        if self.matrix_lr is not None:
            check_positive("matrix_lr", self.matrix_lr)
        check_choice("decay", self.decay, DECAYS)
        for name in ("lr", "lr_multiplier", "eps"):
            check_positive(name, getattr(self, name))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        check_at_least("weight_decay", self.weight_decay, 0)
        check_at_least("warmup_steps", self.warmup_steps, 0)
        check_share("final_lr_fraction", self.final_lr_fraction)
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be above 0 or null, got {self.clip_norm}")

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer of a network's parameters; frozen ones are left out."""
        lr = self.lr * self.lr_multiplier
        beta1, beta2 = self.betas
        settings: dict[str, Any] = {
            "lr": lr,
            "betas": (beta1, beta2),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        trained = [weight for weight in net.parameters() if weight.requires_grad]
        if self.matrix_lr is None:
            kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
            return kind(trained, **settings)
        assert isinstance(net, HasInnerWeights)
        inner = net.inner_weights()
        numbers = {id(weight) for weight in inner}
        others = [weight for weight in trained if id(weight) not in numbers]
        return Muon(inner, others, self.matrix_lr * self.lr_multiplier, **settings)

    def lr_factor(self, step: int, total_steps: float) -> float:
        """Return the factor of the learning rate at optimizer step 0 … total_steps - 1."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        progress = max(0, step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        left = DECAYS[self.decay](min(1.0, progress))
        return warmup * (self.final_lr_fraction + (1 - self.final_lr_fraction) * left)
