"""The diffusion model as a LightningModule."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from iclevr_diffusion.data.crops import Crops, cut
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.types import Batch, to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import schedule_config
from iclevr_diffusion.models.known_networks import network_config
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.models.protocol import (
    CropNetwork,
    DenoisingNetwork,
    estimates_x0,
    position_prior,
)
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.optimizer import OptimizerSettings
from iclevr_diffusion.utils.checks import check_share
from iclevr_diffusion.utils.lightning_internals import attached_trainer
from iclevr_diffusion.utils.rng import image_generators, keyed_generator, randn


class TrainingNoise(NamedTuple):
    """The random numbers of one batch.

    Attributes:
        timesteps: int64, (B,), in 0 … T-1.
        noise: float32, (B, 3, H, W), standard normal.
        keep: float32, (B, 1), 0 if the labels are dropped, else 1.
    """

    timesteps: Tensor
    noise: Tensor
    keep: Tensor


class DiffusionModule(TrainedModule):
    """Trains a denoising network, conditioned on labels.

    Args:
        net: A :class:`~iclevr_diffusion.models.protocol.DenoisingNetwork`.
        objective: The prediction target and the weights of the loss, with the noise schedule.
        optimizer: Settings of the optimizer.
        label_drop: Probability that the labels of a frame are replaced by zeros, so that the
            network also learns the unconditional estimate for guidance.
        seed: Seed of timesteps, noise, label drop and dropout.
        max_steps: As :class:`TrainedModule`.
        crops: Settings of training crops, for a
            :class:`~iclevr_diffusion.models.protocol.CropNetwork`; None for whole frames, which
            validation always uses.
        fixed_noise: As :class:`TrainedModule`, for timesteps, label drop and crops, too.

    Raises:
        ValueError: ``label_drop`` is not in [0, 1], or the network and the schedule do not match.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        optimizer: OptimizerSettings,
        label_drop: float = 0.0,
        seed: int = 0,
        max_steps: int = -1,
        crops: Crops | None = None,
        fixed_noise: bool = False,
    ) -> None:
        super().__init__(net, optimizer, seed, max_steps, fixed_noise)
        check_share("label_drop", label_drop)
        if estimates_x0(net) and not objective.schedule.variance_preserving:
            raise ValueError(f"{type(net).__name__} needs a variance-preserving schedule")
        self.objective = objective
        self.schedule = objective.schedule
        self.label_drop = label_drop
        self.crops = crops
        self.val_x0_error = MeanMetric(nan_strategy="disable")

    def fit_to_data(self, data: DataModule) -> None:
        """Fit the image statistics and the prior over positions that the network has.

        Raises:
            ValueError: The network takes positions, and the data module gives none.
        """
        super().fit_to_data(data)
        if isinstance(self.net, CropNetwork):
            self.net.fit_statistics(data.train_images(), self.schedule.noise_to_signal())
        layout = position_prior(self.network)
        if layout is None:
            return
        prior = data.position_prior()
        if prior is None:
            raise ValueError("a network with positions needs a data module with_positions=True")
        if not layout.frozen:
            layout.set_prior(prior)

    @property
    def network(self) -> DenoisingNetwork:
        """The network, typed as a :class:`DenoisingNetwork`."""
        return cast(DenoisingNetwork, self.net)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch, corner = self.cropped(batch, batch_idx)
        x0 = to_unit_range(batch.images)
        random = self.noise_for_batch(x0, self.epoch_of_noise, batch_idx)
        x_t = self.schedule.add_noise(x0, random.noise, random.timesteps)
        labels, positions = self.condition(batch)
        if positions is not None:
            positions = positions * random.keep[:, :, None]
        output = self.net(x_t, random.timesteps, labels * random.keep, positions, *corner)
        loss = self.objective.loss(output, x0, random.noise, random.timesteps)
        if self.is_logged:
            self.log("train/loss", loss, sync_dist=True)
        return loss

    def cropped(self, batch: Batch, batch_idx: int) -> tuple[Batch, tuple[Tensor, ...]]:
        """Crop the images of a batch; return it with the corners, int64 (B, 2), if there are crops.

        The corners are functions of (seed, epoch, batch_idx), as all random numbers are.
        """
        if self.crops is None:
            return batch, ()
        generator, count, mine = self.keyed("crop", self.epoch_of_noise, batch_idx, batch.images)
        uniform = torch.rand(count, 6, generator=generator, device=batch.images.device)[mine]
        size = batch.images.shape[-1]
        corner = self.crops.corners(batch.labels, batch.positions, size, uniform)
        images = cut(batch.images, corner, self.crops.size)
        return batch._replace(images=images), (corner,)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss and the error of x_0 on held-out frames, with the same noise each time."""
        x0 = to_unit_range(batch.images)
        random = self.noise_for_frames(x0, batch.indices.tolist())
        x_t = self.schedule.add_noise(x0, random.noise, random.timesteps)
        output = self.net(x_t, random.timesteps, *self.condition(batch))
        loss = self.objective.loss(output, x0, random.noise, random.timesteps)
        x0_error = self.objective.x0_error(output, x0, x_t, random.timesteps)
        self.log_mean("val/loss", self.val_loss, loss, len(x0))
        self.log_mean("val/x0_error", self.val_x0_error, x0_error, len(x0))

    def condition(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return labels and positions; positions are None if the network takes none.

        A frame with unknown positions trains the unconditional estimate.
        """
        if batch.positions is None:
            return batch.labels, None
        known = batch.positions.isfinite().all(-1).all(-1)
        labels = torch.where(known[:, None], batch.labels, 0.0)
        return labels, torch.where(known[:, None, None], batch.positions, 0.0)

    def noise_for_batch(self, x0: Tensor, epoch: int, batch_idx: int) -> TrainingNoise:
        """Sample this process's share of the random numbers of a training batch.

        They are functions of (seed, epoch, batch_idx), sampled for all processes together: two
        processes with half the batch each have the numbers that a single one would have.
        """
        device = x0.device
        generator, count, mine = self.keyed("train", epoch, batch_idx, x0)
        timesteps = self.objective.timesteps(count, generator, device)
        keep = torch.rand(count, 1, generator=generator, device=device) >= self.label_drop
        noise = torch.randn(count, *x0.shape[1:], generator=generator, device=device)
        return TrainingNoise(timesteps[mine], noise[mine], keep[mine].to(x0.dtype))

    def keyed(
        self, stream: str, epoch: int, batch_idx: int, images: Tensor
    ) -> tuple[torch.Generator, int, slice]:
        """Return a batch's generator, its size over all processes, and the slice of this one."""
        trainer = attached_trainer(self)
        rank, world_size = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        generator = keyed_generator(stream, self.seed, epoch, batch_idx, device=images.device)
        mine = slice(rank * len(images), (rank + 1) * len(images))
        return generator, len(images) * world_size, mine

    def noise_for_frames(self, x0: Tensor, indices: list[int]) -> TrainingNoise:
        """Sample the random numbers of validation, functions of each frame's index alone."""
        generators = image_generators(self.seed, indices, "val")
        last = self.objective.trained_timesteps
        timesteps = torch.cat([torch.randint(last, (1,), generator=g) for g in generators])
        noise = randn(tuple(x0.shape[1:]), generators)
        return TrainingNoise(
            timesteps.to(x0.device), noise.to(x0.device), torch.ones(len(x0), 1, device=x0.device)
        )

    def flops_per_training_image(self, forward: int) -> int:
        """Count the FLOPs per training image, from those of a forward pass.

        A backward pass takes twice as many. If only a part of the network is trained, only that
        part is counted.
        """
        if isinstance(self.net, CropNetwork):
            whole = self.network.config["image_size"]
            forward = self.net.crop_flops(self.crops.size if self.crops else whole)
        return 3 * forward

    def pipeline(
        self,
        net: nn.Module,
        sampler: Sampler,
        guidance: Guidance | None = None,
        layout: str = CLEAR,
    ) -> DenoisingPipeline:
        """Return the pipeline of ``net``, this module's network or its averaged copy.

        Raises:
            ValueError: There are more steps than timesteps, the layout is unknown, or the network
                takes no positions.
        """
        size = self.network.config["image_size"]
        network = cast(DenoisingNetwork, net)
        denoiser = Denoiser(network, self.schedule, self.objective.sampled_as, guidance)
        return DenoisingPipeline(denoiser, sampler, (3, size, size), layout, self.vocabulary)

    def description(self) -> dict[str, Any]:
        """Return the settings of network, schedule and prediction, as plain values."""
        objective = self.objective
        result = {
            "net": network_config(self.net),
            "schedule": schedule_config(self.schedule),
            "prediction": objective.prediction.name,
        }
        if objective.sampled_as is not objective.prediction:
            result["sampled_as"] = objective.sampled_as.name
        return result
