"""The evaluator as a LightningModule."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.augment import augment
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.types import Batch, to_unit_range
from iclevr_diffusion.evaluation.classifier_networks import (
    MAX_COUNT,
    Classifier,
    describe_classifier,
)
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.utils.rng import keyed_generator

COUNT_WEIGHT = 0.5


class EvaluatorModule(TrainedModule):
    """Trains a classifier to name and count the objects in augmented images."""

    net: Classifier

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = to_unit_range(batch.images)
        key = (self.seed, self.epoch_of_noise, batch_idx, self.global_rank)
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
        """Compute the cross-entropy of the labels, summed, and of the object count.

        Args:
            images: float32, (B, 3, 64, 64) in [-1, 1].
            labels: float32, (B, L), or (B, L + 8) as in :mod:`~iclevr_diffusion.data.unclear`; 2
                for two objects of one label, -1 for an unknown entry.
        """
        images = images.contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        logits, count_logits, _ = self.net(images)
        shown = F.pad(labels, (0, max(0, logits.shape[1] - labels.shape[1])))[:, : logits.shape[1]]
        known = (shown >= 0).to(logits.dtype)
        names = F.binary_cross_entropy_with_logits(
            logits, shown.clamp(0, 1), known, reduction="sum"
        )
        counts = F.cross_entropy(count_logits, object_count(labels).clamp(max=MAX_COUNT))
        return names / len(images) + COUNT_WEIGHT * counts

    def description(self) -> dict[str, Any]:
        """Return the network's settings, as plain values."""
        return {"net": describe_classifier(self.net)}


def object_count(labels: Tensor) -> Tensor:
    """Count the objects, int64 (B,), in labels as of :meth:`EvaluatorModule.loss`.

    An object that may or may not be clear has two entries of -1, and counts once.
    """
    clear, unclear = labels[:, :NUM_LABELS], labels[:, NUM_LABELS:]
    return (clear.abs().sum(1) + unclear.clamp(min=0).sum(1)).long()
