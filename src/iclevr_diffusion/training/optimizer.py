"""What all trained modules share: an optimizer, warm-up, decay, and a bound on the gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from iclevr_diffusion.training.muon import Muon
from iclevr_diffusion.utils.rng import keyed_seed

TAIL = 0.2  # of a trapezoid's steps
DECAYS: dict[str, Callable[[float], float]] = {  # what is left, of the share of the steps done
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "trapezoid": lambda progress: min(1.0, (1 - progress) / TAIL),
}


@runtime_checkable
class HasInnerWeights(Protocol):
    """A network that Muon can train."""

    def inner_weights(self) -> list[nn.Parameter]:
        """The weights of layers that map features to features."""


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights move.

    name: ``adamw``, ``adam``, or ``muon``: that for the weights inside the network, AdamW for the
        rest.
    lr, lr_multiplier: their product is the learning rate after warm-up.
    matrix_lr: Muon's, in the place of ``lr``; None with the others.
    betas, weight_decay, eps: the optimizer's own.
    warmup_steps: optimizer steps over which the learning rate rises from zero, linearly.
    decay: ``constant``; ``cosine``; or ``trapezoid``: constant, and linear over the last fifth of
        the steps (Hägele et al. 2024, arXiv 2405.18392): as good, and where it ends can be decided
        until the fall begins.
    final_lr_fraction: where the decay ends, one step after the last, as a share of that.
    clip_norm: bound on the gradient's global norm; None only measures it.

    Raises:
        ValueError: a setting is out of range.
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
            raise ValueError(f"optimizer.name must be adamw, adam or muon, got {self.name!r}")
        if (self.matrix_lr is not None) != (self.name == "muon"):
            raise ValueError("optimizer.matrix_lr belongs to optimizer=muon, and to that alone")
        if self.matrix_lr is not None and not 0 < self.matrix_lr < math.inf:
            raise ValueError(f"optimizer.matrix_lr must be above 0, got {self.matrix_lr}")
        if self.decay not in DECAYS:
            raise ValueError(
                f"optimizer.decay must be one of {', '.join(DECAYS)}; got {self.decay!r}"
            )
        if not 0 < self.lr < math.inf:
            raise ValueError(f"optimizer.lr must be above 0, got {self.lr}")
        if not 0 < self.lr_multiplier < math.inf:
            raise ValueError(f"optimizer.lr_multiplier must be above 0, got {self.lr_multiplier}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"optimizer.eps must be above 0, got {self.eps}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"optimizer.weight_decay must be 0 or more, got {self.weight_decay}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be 0 or more, got {self.warmup_steps}")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(
                f"optimizer.final_lr_fraction must be in [0, 1], got {self.final_lr_fraction}"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"optimizer.clip_norm must be above 0 or null, got {self.clip_norm}")

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over a network's parameters, but for those that are frozen."""
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
        """Share of the learning rate at optimizer step ``step``, 0 … total_steps - 1."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        progress = max(0, step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        left = DECAYS[self.decay](min(1.0, progress))
        return warmup * (self.final_lr_fraction + (1 - self.final_lr_fraction) * left)


class TrainedModule(L.LightningModule):
    """A network and how its weights move.

    Args:
        net: what is trained, and averaged.
        optimizer: how.
        seed: of all random numbers of the training.
        max_steps: where a decay of the learning rate ends, if the epochs do not end before; -1 if
            only they count.
        fixed_noise: whether every epoch repeats the random numbers of the first, so that the loss
            of a few frames can fall to zero.

    Raises:
        ValueError: Muon is asked for, and the network does not tell its inner weights.
    """

    net: nn.Module

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerSettings,
        seed: int = 0,
        max_steps: int = -1,
        fixed_noise: bool = False,
    ) -> None:
        super().__init__()
        if optimizer.name == "muon" and not isinstance(net, HasInnerWeights):
            raise ValueError(
                f"optimizer=muon is not for {type(net).__name__}, which does not tell its inner"
                " weights; use adamw or adam"
            )
        self.net = net
        self.optimizer_settings = optimizer
        self.seed = seed
        self.max_steps = max_steps
        self.fixed_noise = fixed_noise
        self.grad_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.batch_sizes_of_step: list[int] = []  # of the batches since the last optimizer step
        self.step_was_skipped = False  # the last: its gradient overflowed under 16-mixed
        self.val_loss = MeanMetric(nan_strategy="disable")  # NaN shows

    @property
    def epoch_of_noise(self) -> int:
        """The epoch that keys all random numbers of the training."""
        return 0 if self.fixed_noise else self.current_epoch

    @property
    def is_logged(self) -> bool:
        """Whether the loggers get this step's metrics.

        To hand over those of the other steps would make the accelerator wait for nothing.
        """
        return self._trainer is not None and self.trainer._logger_connector.should_update_logs

    def log_mean(self, name: str, metric: MeanMetric, value: Tensor, frames: int) -> None:
        """Log the mean over the frames of all batches and processes; ``value`` is this batch's.

        Lightning's own mean over the uneven shares of several processes is wrong: it divides the
        number of frames as an integer. And ``nan_strategy="disable"`` ignores weights (torchmetrics
        issue 3434), so every frame passes a value of its own.
        """
        metric.update(value.expand(frames))
        self.log(name, metric)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer_and_decay(self.net)

    def optimizer_and_decay(self, net: nn.Module) -> OptimizerLRSchedulerConfig:
        """An optimizer of a network, and the warm-up and decay of its learning rate."""
        settings = self.optimizer_settings
        optimizer = settings.build(net)
        total_steps = self.trainer.estimated_stepping_batches
        if self.max_steps > 0:
            total_steps = min(total_steps, self.max_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.lr_factor(step, total_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make what layers draw (dropout) a function of the batch, as everything else is."""
        key = ("layers", self.seed, self.epoch_of_noise, batch_idx, self.global_rank)
        torch.manual_seed(keyed_seed(*key))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.batch_sizes_of_step = []
        self.batch_sizes_of_step.append(len(batch.images))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate a batch's mean loss, weighted by its size relative to its step's first."""
        sizes = self.batch_sizes_of_step
        weight = sizes[-1] / sizes[0] if self.automatic_optimization else 1.0
        super().backward(loss * weight, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make the gradient that of the mean over all images of the step; clip and log its norm.

        Lightning has divided the loss of each batch by ``accumulate_grad_batches``, also where an
        epoch's last step has fewer of them.
        """
        if sizes := self.batch_sizes_of_step:
            share = sum(sizes) / (sizes[0] * self.trainer.accumulate_grad_batches)
            gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
            if share != 1:
                torch._foreach_div_(gradients, share)
        self.grad_norm = self.clip(self.net)
        self.note_overflow(self.grad_norm)
        if self.is_logged:
            if not self.step_was_skipped:
                self.log("train/grad_norm", self.grad_norm)
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def clip(self, net: nn.Module) -> Tensor:
        """Clip the global norm of a network's gradient; what it was before, a scalar."""
        bound = self.optimizer_settings.clip_norm
        return nn.utils.clip_grad_norm_(net.parameters(), math.inf if bound is None else bound)

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """What scales the loss under 16-mixed, and skips steps whose gradient overflows."""
        return getattr(self.trainer.precision_plugin, "scaler", None) if self._trainer else None

    def note_overflow(self, norm: Tensor) -> None:
        """Note whether the optimizer step with a gradient of that norm, unscaled, is skipped."""
        self.step_was_skipped = self.loss_scaler is not None and not bool(norm.isfinite())

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance a schedule of the learning rate, unless the optimizer step was skipped."""
        if not self.step_was_skipped:
            super().lr_scheduler_step(scheduler, metric)

    def description(self) -> dict[str, Any]:
        """What it takes to rebuild the model, as plain values; a resume compares it."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description."""
        checkpoint["model"] = self.description()
