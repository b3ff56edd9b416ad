"""A conditional GAN as a LightningModule."""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from iclevr_diffusion.data.types import Batch, to_unit_range
from iclevr_diffusion.diffusion.pipeline import GeneratorPipeline, refuse_layout
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.models.known_networks import network_config
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.models.protocol import flops
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.optimizer import OptimizerSettings
from iclevr_diffusion.utils.rng import keyed_generator


class GANModule(TrainedModule):
    """Trains a generator and a discriminator in turn, with binary cross-entropy.

    (Goodfellow et al. 2014, arXiv 1406.2661, algorithm 1, with the generator's loss of section 3;
    Mirza & Osindero 2014, arXiv 1411.1784, for the labels.)

    A step is a batch of the data. It is cut into parts, whose size depends on the epoch, and each
    part updates both networks once.

    Args:
        net: The generator, which is averaged and used for sampling.
        discriminator: The discriminator.
        optimizer: Settings of both optimizers.
        batch_sizes: Sizes of the parts, each for an equal share of ``epochs``, in order.
        epochs: Epochs of the training.
        seed: Seed of the latent numbers.
        max_steps, fixed_noise: As :class:`TrainedModule`.

    Raises:
        ValueError: A batch size is not a whole number of at least 1.
    """

    net: Generator
    can_train_longer = False  # the sizes of its batches depend on the number of epochs

    def __init__(
        self,
        net: Generator,
        discriminator: Discriminator,
        optimizer: OptimizerSettings,
        batch_sizes: Sequence[int] = (128, 64, 32, 16, 8, 4, 2),
        epochs: int = 7,
        seed: int = 0,
        max_steps: int = -1,
        fixed_noise: bool = False,
    ) -> None:
        super().__init__(net, optimizer, seed, max_steps, fixed_noise)
        if not batch_sizes or any(type(size) is not int or size < 1 for size in batch_sizes):
            raise ValueError(f"batch_sizes must be whole numbers of at least 1, got {batch_sizes}")
        self.discriminator = discriminator
        self.batch_sizes = list(batch_sizes)
        self.epochs = epochs
        self.automatic_optimization = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizers of the generator and the discriminator, in this order."""
        both = (self.net, self.discriminator)
        return [self.optimizer_and_decay(network) for network in both]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images = to_unit_range(batch.images)
        z = self.sample_latents(len(images), batch_idx)
        losses = []
        for end in range(self.part_size(), len(images) + 1, self.part_size()):
            part = slice(end - self.part_size(), end)
            last = end == len(images)
            losses.append(self.update(images[part], batch.labels[part], z[part], last))
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            self.lr_scheduler_step(scheduler, None)
        self.average_statistics()
        generator, discriminator = torch.stack(losses).mean(0)
        if self.is_logged:
            self.log("train/loss_generator", generator, sync_dist=True)
            self.log("train/loss_discriminator", discriminator, sync_dist=True)
            self.log("train/batch_size", float(self.part_size()))
            if not self.step_was_skipped:
                self.log("train/grad_norm", cast(Tensor, self.grad_norm))
            self.log("train/lr", self.optimizers()[0].param_groups[0]["lr"])  # type: ignore[index]
        return {"loss": generator + discriminator}

    def update(self, images: Tensor, labels: Tensor, z: Tensor, last: bool) -> Tensor:
        """Update both networks once; return the losses of generator and discriminator, (2,).

        Args:
            images, labels, z: One part of a batch.
            last: Whether it is the last part of its batch. Lightning counts only this step, so that
                its counter counts batches.
        """
        of_generator, of_discriminator = cast(list[LightningOptimizer], self.optimizers())
        fake_images = self.net(z, labels)

        real = self.discriminator(images, labels)
        fake = self.discriminator(fake_images.detach(), labels)
        discriminator_loss = bce(real, 1.0) + bce(fake, 0.0)
        of_discriminator.zero_grad()
        self.manual_backward(discriminator_loss)
        self.step(of_discriminator)

        generator_loss = bce(self.discriminator(fake_images, labels), 1.0)
        of_generator.zero_grad()
        self.manual_backward(generator_loss)
        self.step(of_generator, counted=last)
        return torch.stack([generator_loss.detach(), discriminator_loss.detach()])

    def step(self, optimizer: LightningOptimizer, counted: bool = False) -> None:
        """Take an optimizer step, in any precision; Lightning counts it if ``counted``."""
        if counted:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, which is no longer scaled here, of the network to be updated."""
        _, of_discriminator = self.optimizers(use_pl_optimizer=False)  # type: ignore[misc]
        if optimizer is of_discriminator:
            self.clip(self.discriminator)
        else:
            self.grad_norm = self.clip(self.net)
            self.note_overflow(self.grad_norm)

    def average_statistics(self) -> None:
        """Average the statistics of batch norms over the processes, which see different frames."""
        if self.trainer.world_size == 1:
            return
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.trainer.strategy.reduce(buffer, reduce_op="mean"))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the discriminator's loss on held-out frames, which is high if it overfits."""
        logits = self.discriminator(to_unit_range(batch.images), batch.labels)
        self.log_mean("val/loss", self.val_loss, bce(logits, 1.0), len(logits))

    def part_size(self) -> int:
        """Return the size of the parts in the current epoch."""
        share = self.current_epoch * len(self.batch_sizes) // self.epochs
        return self.batch_sizes[min(share, len(self.batch_sizes) - 1)]

    def sample_latents(self, count: int, batch_idx: int) -> Tensor:
        """Sample this process's share of a batch's latent numbers, (count, latent)."""
        key = ("latents", self.seed, self.epoch_of_noise, batch_idx)
        generator = keyed_generator(*key, device=self.device)
        shape = (count * self.trainer.world_size, self.net.latent)
        z = torch.randn(shape, generator=generator, device=self.device)
        return z[self.global_rank * count :][:count]

    def flops_per_training_image(self, forward: int) -> int:
        """Count the FLOPs per training image, from those of a forward pass of the generator.

        A backward pass takes twice as many as a forward pass. Per image, the generator has one
        forward and backward pass, the discriminator three (a frame, and a generated image for each
        of the losses).
        """
        image, labels = torch.zeros(1, *self.net.image_shape), torch.zeros(1, self.net.num_labels)
        evaluator = flops(self.discriminator, image, labels)
        return 3 * (forward + 3 * evaluator)

    def pipeline(
        self,
        net: nn.Module,
        sampler: None = None,
        guidance: None = None,
        layout: str = CLEAR,
    ) -> GeneratorPipeline:
        """Return the pipeline of ``net``, the generator or its averaged copy.

        Raises:
            ValueError: The layout is not ``clear``: a GAN takes no positions.
        """
        refuse_layout(layout, takes_positions=False)
        return GeneratorPipeline(cast(Generator, net), self.vocabulary)

    def description(self) -> dict[str, Any]:
        """Return the networks' settings, as plain values."""
        return {
            "generator": network_config(self.net),
            "batch_sizes": self.batch_sizes,
            "epochs": self.epochs,
        }


def bce(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of logits (B,) for one target, a scalar."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
