"""Fréchet and kernel distance between two sets of images, in the features of an evaluator."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_kernel
from torchmetrics.utilities import dim_zero_cat


class _Features(nn.Identity):
    """Tells torchmetrics that the input is features already, and how many."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class FrechetDistance(FrechetInceptionDistance):
    """Fréchet distance between two sets of images (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    ``update(features, real=…)`` takes the evaluator's features (B, F). The value depends on the
    evaluator and shrinks with the number of images, so compare values only if both are the same.
    """

    name: ClassVar[str] = "frechet"
    title: ClassVar[str] = "Fréchet"
    scale: ClassVar[float] = 1.0  # factor for tables

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(feature=_Features(num_features), **kwargs)
        self.orig_dtype = torch.float32  # torchmetrics learns it from the first update

    def compute(self) -> Tensor:
        """Return the distance, float32; NaN if a set has fewer than two images."""
        if min(int(self.real_features_num_samples), int(self.fake_features_num_samples)) < 2:
            return torch.tensor(torch.nan)
        return super().compute()


class KernelDistance(Metric):
    """Kernel distance between two sets of images: an unbiased estimate of the squared MMD.

    The kernel is cubic (Bińkowski et al. 2018, arXiv 1801.01401, section 4).
    ``update(features, real=…)`` takes the evaluator's features (B, F). All pairs are compared,
    where torchmetrics' KernelInceptionDistance samples subsets of one size. The expectation does
    not depend on the number of images; for two halves of one set it is 0, and values may be
    negative. Every process adds to both sets, possibly no image.
    """

    name: ClassVar[str] = "kernel"
    title: ClassVar[str] = "kernel × 1000"
    scale: ClassVar[float] = 1000.0

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
        """Add features (B, F) to the real or to the generated set."""
        (self.real_features if real else self.fake_features).append(features)

    def compute(self) -> Tensor:
        """Return the distance, float64; NaN if a set has fewer than two images."""
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
    """Return the sum of (x·y / F + 1)³ over all pairs, float64."""
    return torch.stack(
        [poly_kernel(part, y.double()).sum() for part in x.double().split(1024)]
    ).sum()


def _kernel_diagonal_sum(x: Tensor) -> Tensor:
    return ((x.double().square().sum(1) / x.shape[1] + 1) ** 3).sum()


DISTANCES = {distance.name: distance for distance in (FrechetDistance, KernelDistance)}


def distances(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Compute Fréchet and kernel distance between two sets of features, (N, F) and (R, F).

    Returns:
        The distances by name; empty if a set has fewer than two images.
    """
    result: dict[str, float] = {}
    if min(len(features), len(reference)) < 2:
        return result
    for name, kind in DISTANCES.items():
        metric = kind(features.shape[1])  # on the CPU: not every accelerator has float64
        metric.update(features.cpu(), real=False)
        metric.update(reference.cpu(), real=True)
        result[name] = float(metric.compute())
    return result
