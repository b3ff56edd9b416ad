"""The diffusion model as a LightningModule: a network, the mathematics, an optimizer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from iclevr_diffusion.data.frames import Batch
from iclevr_diffusion.diffusion.objective import Objective
from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.rng import image_generators, keyed_generator, randn


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights move.

    name: ``adamw`` or ``adam``.
    lr: the learning rate after warm-up.
    betas, weight_decay, eps: the optimizer's own.
    warmup_steps: optimizer steps over which the learning rate rises from zero, linearly.
    decay: ``constant``, or ``cosine`` to ``final_lr_fraction`` at the last step.
    final_lr_fraction: where the cosine ends, as a share of ``lr``.
    clip_norm: bound on the gradient's global norm; None only measures it.

    Raises:
        ValueError: a setting is out of range.
    """

    name: str = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-8
    warmup_steps: int = 0
    decay: str = "constant"
    final_lr_fraction: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "adam"):
            raise ValueError(f"optimizer.name must be adamw or adam, got {self.name!r}")
        if self.decay not in ("constant", "cosine"):
            raise ValueError(f"optimizer.decay must be constant or cosine, got {self.decay!r}")
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr must be above 0, got {self.lr}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay must be 0 or more, got {self.weight_decay}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be 0 or more, got {self.warmup_steps}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"optimizer.clip_norm must be above 0 or null, got {self.clip_norm}")

    def build(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over ``parameters``."""
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        beta1, beta2 = self.betas
        return kind(parameters, self.lr, (beta1, beta2), self.eps, weight_decay=self.weight_decay)

    def lr_factor(self, step: int, total_steps: float) -> float:
        """Share of ``lr`` at optimizer step ``step``, 0 … total_steps - 1."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.decay == "constant":
            return warmup
        progress = max(0, step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return warmup * (self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine)


class Draw(NamedTuple):
    """The random numbers of one batch.

    timesteps: int64, (B,), uniform over 0 … T-1.
    noise: float32, (B, 3, H, W), standard normal.
    keep: float32, (B, 1), 0 where the labels are dropped, else 1.
    """

    timesteps: Tensor
    noise: Tensor
    keep: Tensor


class DiffusionModule(L.LightningModule):
    """Trains a network to undo noise, conditioned on labels.

    Args:
        net: ``net(x_t, timesteps, labels)``.
        objective: what the network predicts, and how its error counts; it holds the schedule.
        optimizer: how the weights move.
        label_drop: probability that a frame's labels are replaced by zeros, so that the network
            also learns the unconditional estimate that guidance needs.
        seed: of timesteps, noise and label drop.

    Raises:
        ValueError: ``label_drop`` is not in [0, 1].
    """

    def __init__(
        self,
        net: ConditionalUNet,
        objective: Objective,
        optimizer: OptimizerSettings,
        label_drop: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_drop <= 1:
            raise ValueError(f"guidance.label_drop must be in [0, 1], got {label_drop}")
        self.net = net
        self.objective = objective
        self.schedule = objective.schedule
        self.optimizer_settings = optimizer
        self.label_drop = label_drop
        self.seed = seed
        self.grad_norm: Tensor | None = None  # of the last optimizer step, before clipping

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x0 = to_unit_range(batch.images)
        draw = self.draw_for_batch(x0, self.current_epoch, batch_idx)
        x_t = self.schedule.add_noise(x0, draw.noise, draw.timesteps)
        output = self.net(x_t, draw.timesteps, batch.labels * draw.keep)
        loss = self.objective.loss(output, x0, draw.noise, draw.timesteps)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the error of x_0 on held-out frames, with the same noise every time."""
        x0 = to_unit_range(batch.images)
        draw = self.draw_for_frames(x0, batch.indices.tolist())
        x_t = self.schedule.add_noise(x0, draw.noise, draw.timesteps)
        output = self.net(x_t, draw.timesteps, batch.labels)
        loss = self.objective.loss(output, x0, draw.noise, draw.timesteps)
        x0_error = self.objective.x0_error(output, x0, x_t, draw.timesteps)
        log = {"val/loss": loss, "val/x0_error": x0_error}
        self.log_dict(log, on_epoch=True, batch_size=len(x0), sync_dist=True)

    def draw_for_batch(self, x0: Tensor, epoch: int, batch_idx: int) -> Draw:
        """This process's share of the random numbers of a training batch.

        They are a function of (seed, epoch, batch_idx), drawn for all processes together: two
        processes with half the batch each see what one would see.
        """
        rank, world_size = (self.global_rank, self.trainer.world_size) if self._trainer else (0, 1)
        device, count = x0.device, len(x0) * world_size
        generator = keyed_generator("train", self.seed, epoch, batch_idx, device=device)
        timesteps = torch.randint(
            self.schedule.timesteps, (count,), generator=generator, device=device
        )
        keep = torch.rand(count, 1, generator=generator, device=device) >= self.label_drop
        noise = torch.randn(count, *x0.shape[1:], generator=generator, device=device)
        mine = slice(rank * len(x0), (rank + 1) * len(x0))
        return Draw(timesteps[mine], noise[mine], keep[mine].to(x0.dtype))

    def draw_for_frames(self, x0: Tensor, indices: list[int]) -> Draw:
        """The random numbers of validation: a function of each frame's index alone."""
        generators = image_generators(self.seed, indices, "val")
        timesteps = torch.cat(
            [torch.randint(self.schedule.timesteps, (1,), generator=g) for g in generators]
        )
        noise = randn(tuple(x0.shape[1:]), generators)
        return Draw(
            timesteps.to(x0.device), noise.to(x0.device), torch.ones(len(x0), 1, device=x0.device)
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        settings = self.optimizer_settings
        optimizer = settings.build(self.net.parameters())
        total_steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.lr_factor(step, total_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's global norm, and log what it was before."""
        bound = self.optimizer_settings.clip_norm
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), math.inf if bound is None else bound)
        self.grad_norm = norm
        self.log("train/grad_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what it takes to rebuild the model, as plain values."""
        checkpoint["model"] = self.description()

    def description(self) -> dict[str, Any]:
        """The network's, the schedule's and the prediction's settings, as plain values."""
        net = {key: _plain(value) for key, value in self.net.config.items() if key[0] != "_"}
        return {
            "net": net,
            "schedule": dict(self.schedule.config),
            "prediction": self.objective.prediction.name,
        }


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 in [-1, 1], same shape."""
    return images.float() / 127.5 - 1


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
