"""The evaluator as a LightningModule."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.augment import augment
from iclevr_diffusion.data.frames import Batch, to_unit_range
from iclevr_diffusion.modules.optimizer import TrainedModule
from iclevr_diffusion.nets.evaluator import MAX_COUNT, ObjectNet
from iclevr_diffusion.rng import keyed_generator

COUNT_WEIGHT = 0.5


class EvaluatorModule(TrainedModule):
    """Trains a network to name and count the objects in spoilt pictures.

    Args:
        net: what is trained.
        optimizer: how the weights move.
        seed: of how the pictures are spoilt.
        max_steps: as :class:`TrainedModule`.
    """

    net: ObjectNet

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = to_unit_range(batch.images)
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        with torch.autocast(images.device.type, enabled=False):
            images = augment(images, keyed_generator("augment", *key, device=images.device))
        loss = self.loss(images, batch.labels)
        if self.is_logged:
            self.log("train/loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.loss(to_unit_range(batch.images), batch.labels)
        self.log_mean("val/loss", self.val_loss, loss, len(batch.images))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the labels, summed, and of the count; ``labels`` may say 2 of one."""
        label_logits, count_logits, _ = self.net(images)
        names = F.binary_cross_entropy_with_logits(
            label_logits, labels.clamp(max=1), reduction="sum"
        )
        counts = F.cross_entropy(count_logits, labels.sum(1).long().clamp(max=MAX_COUNT))
        return names / len(images) + COUNT_WEIGHT * counts

    def description(self) -> dict[str, Any]:
        """The network's settings, as plain values."""
        return {"net": {"widths": self.net.widths, "hidden": self.net.hidden}}
