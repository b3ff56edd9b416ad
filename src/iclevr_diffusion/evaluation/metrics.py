"""How well images show their labels, and how much they look like others: torchmetrics.

Each process adds its own images; together they give what one process with all of them gives.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat

from iclevr_diffusion.data.labels import NUM_LABELS


class Ratio(Metric):
    """A sum over images divided by another; NaN where nothing was added.

    Subclasses say in :meth:`measure` what one batch adds to both.
    """

    full_state_update = False
    shape: tuple[int, ...] = ()
    total: Tensor
    weight: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(self.shape), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(self.shape), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add images: the evaluator's scores, float (B, L) in [0, 1]; labels (B, L), multi-hot.

        Raises:
            ValueError: shapes differ, or a score is NaN or outside [0, 1].
        """
        if scores.shape != labels.shape or scores.ndim != 2:
            raise ValueError(
                f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} are not both (B, L)"
            )
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails every comparison
            raise ValueError("the evaluator's scores must be in [0, 1]; some are NaN or beyond")
        total, weight = self.measure(scores, labels > 0.5)
        self.total += total
        self.weight += weight

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor | int]:
        """What the batch adds to the sum and to its divisor; ``true`` is bool (B, L)."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        return self.total / self.weight


class LabelAccuracy(Ratio):
    """Pooled top-k label accuracy, the course's score.

    For an image with k true labels, the k largest of the evaluator's scores are its answer; the
    first of two equal ones counts as the larger. The score is all hits over all labels. It
    does not punish an extra object.
    """

    higher_is_better = True

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        return hits(scores, true).sum(), true.sum()


class ImageAccuracy(Ratio):
    """The mean over images of each one's share of hits, which some reports print instead.

    Images without a label do not count.
    """

    higher_is_better = True

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        labels = true.sum(1)
        return (hits(scores, true).sum(1) / labels.clamp(min=1)).sum(), (labels > 0).sum()


class AccuracyPerLabel(Ratio):
    """Pooled top-k accuracy of each label, (L,); NaN where it was never asked for."""

    higher_is_better = True
    shape = (NUM_LABELS,)

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        return hits(scores, true).sum(0), true.sum(0)


class AccuracyPerCount(Ratio):
    """Pooled top-k accuracy of the images with k labels, (L + 1,); NaN where there are none."""

    higher_is_better = True
    shape = (NUM_LABELS + 1,)

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        labels, empty = true.sum(1), torch.zeros_like(self.total)
        found = hits(scores, true).sum(1)
        return (
            empty.index_add(0, labels, found.to(empty.dtype)),
            empty.index_add(0, labels, labels.to(empty.dtype)),
        )


class ExactMatch(Ratio):
    """Share of the images that show all of their labels, no other, and no object of unclear shape.

    A label is shown where its score is above one half.
    """

    higher_is_better = True

    def update(self, scores: Tensor, labels: Tensor, unclear: Tensor | None = None) -> None:
        """As :meth:`Ratio.update`.

        Args:
            unclear: (B, 8), as :class:`~iclevr_diffusion.evaluation.classifier.ClassifierOutput`
                has it.
        """
        super().update(scores, labels)
        if unclear is not None:
            exact = (shown(scores) == (labels > 0.5)).all(1)
            self.total -= (exact & shown(unclear).any(1)).sum()

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, int]:
        return (shown(scores) == true).all(1).sum(), len(true)


class UnclearObjects(Metric):
    """Colors of which an image shows an object without a clear shape, per image."""

    higher_is_better = False
    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, unclear: Tensor) -> None:
        """Add images: ``unclear`` (B, 8) of their classifier output."""
        self.total += shown(unclear).sum()
        self.images += len(unclear)

    def compute(self) -> Tensor:
        return self.total / self.images


class MissingObjects(Ratio):
    """Labels asked for and not shown, an image."""

    higher_is_better = False

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, int]:
        return (true & ~shown(scores)).sum(), len(true)


class ExtraObjects(Ratio):
    """Labels shown and not asked for, an image."""

    higher_is_better = False

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, int]:
        return (shown(scores) & ~true).sum(), len(true)


class Confusion(Ratio):
    """What was drawn for each label, (L, L + 1): row, the label asked for; column, the one drawn.

    A label that is shown counts on the diagonal. One that is missing counts for the extra objects
    of its image, shared evenly, or where there are none, in the last column. Rows of labels
    that were asked for sum to 1, the others are NaN.
    """

    higher_is_better = None
    shape = (NUM_LABELS, NUM_LABELS + 1)

    def measure(self, scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        seen = shown(scores)
        missing, extra = (true & ~seen).float(), (seen & ~true).float()
        nothing = (extra.sum(1, keepdim=True) == 0).float()
        instead = torch.cat((extra, nothing), 1)
        total = missing.T @ (instead / instead.sum(1, keepdim=True))
        total[:, :-1] += (true & seen).sum(0).diag()
        return total, true.sum(0)[:, None]


class CountAccuracy(Metric):
    """Share of the images in which the evaluator counts as many objects as were asked for."""

    higher_is_better = True
    full_state_update = False
    right: Tensor
    images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, counts: Tensor, labels: Tensor) -> None:
        """Add images: counts int (B,); labels (B, L), how many of each were asked for."""
        self.right += (counts == labels.sum(1)).sum()
        self.images += len(counts)

    def compute(self) -> Tensor:
        return self.right / self.images


class _Features(nn.Identity):
    """Tells torchmetrics that it is handed features, and how many."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance between two sets of images (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    ``update(features, real=…)`` takes the evaluator's features (B, F). The value depends on the
    evaluator and shrinks with the number of images: compare only the same of both.
    """

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(feature=_Features(num_features), **kwargs)
        self.orig_dtype = torch.float32  # torchmetrics learns it from the first update

    def compute(self) -> Tensor:
        if min(int(self.real_features_num_samples), int(self.fake_features_num_samples)) < 2:
            return torch.tensor(torch.nan)
        return super().compute()


class KernelDistance(Metric):
    """Kernel distance between two sets of images: the unbiased estimate of the squared maximum
    mean discrepancy under a cubic kernel (Bińkowski et al. 2018, arXiv 1801.01401, section 4).

    ``update(features, real=…)`` takes the evaluator's features (B, F). All pairs are compared:
    torchmetrics' KernelInceptionDistance draws subsets of one size instead. The expectation does
    not depend on the number of images; two halves of one set give about 0, also less. Every
    process adds to both sets, be it no image.
    """

    higher_is_better = False
    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        (self.real_features if real else self.fake_features).append(features)

    def compute(self) -> Tensor:
        """The distance, float64; NaN where a set has fewer than two images."""
        empty = torch.zeros(0, self.num_features)
        real, fake = (
            dim_zero_cat(features) if len(features) else empty
            for features in (self.real_features, self.fake_features)
        )
        m, n = len(real), len(fake)
        if min(m, n) < 2:
            return torch.tensor(torch.nan)
        within = [
            (_kernel_sum(x, x) - _kernel_diagonal_sum(x)) / (len(x) * (len(x) - 1))
            for x in (real, fake)
        ]
        return sum(within) - 2 * _kernel_sum(real, fake) / (m * n)


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """The sum of (x·y / F + 1)³ over all pairs, float64."""
    return torch.stack(
        [poly_kernel(part, y.double()).sum() for part in x.double().split(1024)]
    ).sum()


def _kernel_diagonal_sum(x: Tensor) -> Tensor:
    return ((x.double().square().sum(1) / x.shape[1] + 1) ** 3).sum()


def hits(scores: Tensor, true: Tensor) -> Tensor:
    """Which true labels are among their image's k largest scores, bool (B, L)."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < true.sum(1, keepdim=True)) & true


def shown(scores: Tensor) -> Tensor:
    """Which labels the evaluator sees, bool (B, L)."""
    return scores > 0.5
