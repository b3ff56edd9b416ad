"""Accuracy by label and by number of objects, and which labels are confused, as torchmetrics."""

import torch
from torch import Tensor

from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.metrics import ImageMetric, hits, requested, shown


class AccuracyPerLabel(ImageMetric):
    """Pooled top-k accuracy of each label, (L,); NaN for labels that were not requested."""

    name, title, higher_is_better = "by_label", "accuracy by label", True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_labels,)

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        true = requested(labels)
        return hits(output.scores, true).sum(0), true.sum(0)


class AccuracyPerCount(ImageMetric):
    """Pooled top-k accuracy of the images with k labels, (L + 1,); NaN where there are none."""

    name, title, higher_is_better = "by_count", "accuracy by number of objects", True

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_labels + 1,)

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        true = requested(labels)
        count, empty = true.sum(1), torch.zeros_like(self.total)
        found = hits(output.scores, true).sum(1)
        return (
            empty.index_add(0, count, found.to(empty.dtype)),
            empty.index_add(0, count, count.to(empty.dtype)),
        )


class Confusion(ImageMetric):
    """The labels shown for each requested one, (L, L + 1): rows are requested, columns shown.

    A label that is shown counts on the diagonal. A missing one counts for the extra objects of its
    image in equal parts, or in the last column if there are none. Rows of requested labels sum to
    1, the others are NaN.
    """

    name, title, higher_is_better = "confusion", "confusion", None

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.num_labels, self.num_labels + 1)

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen, true = shown(output.scores), requested(labels)
        missing, extra = (true & ~seen).float(), (seen & ~true).float()
        nothing = (extra.sum(1, keepdim=True) == 0).float()
        instead = torch.cat((extra, nothing), 1)
        total = missing.T @ (instead / instead.sum(1, keepdim=True))
        total[:, :-1] += (true & seen).sum(0).diag()
        return total, true.sum(0)[:, None]
