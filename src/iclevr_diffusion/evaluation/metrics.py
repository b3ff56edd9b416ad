"""Metrics of images and the labels they were generated for, as torchmetrics.

A metric describes itself: its title, unit, range, format and which way is better are attributes of
its class, and tables, loggers and plots ask for them. A new metric is one class, in a module that
the setting ``plugins`` names::

    from iclevr_diffusion.evaluation import ImageMetric, register_metric

    @register_metric
    class SomethingShown(ImageMetric):
        '''Share of the images that show at least one object.'''

        name, title, higher_is_better = "something_shown", "something shown", True

        def measure(self, output, labels):
            return (output.scores > 0.5).any(1).sum(), len(labels)

Each process adds its own images; ``compute`` gives the value over the images of all processes.
"""

import math
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.evaluation.classifier_output import THRESHOLD, ClassifierOutput
from iclevr_diffusion.utils.registry import Registry


class ImageMetric(Metric):
    """A ratio of two sums over images; NaN where nothing was added.

    Subclasses implement :meth:`measure`.

    Attributes:
        name: The key in logs (``score/<list>/<name>``) and JSON files.
        title: The heading in tables and plots.
        unit: What a value counts, such as ``per image``; empty for shares.
        range: The smallest and the largest possible value.
        higher_is_better: None where neither is.
        format: The format specification of a value in tables.
        headline: Whether tables that compare runs show it.

    Args:
        num_labels: L.
        max_count: The largest number of objects that the evaluator counts.
        kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    format: ClassVar[str] = ".4f"
    headline: ClassVar[bool] = False

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(
        self, num_labels: int = NUM_LABELS, max_count: float = math.inf, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_labels, self.max_count = num_labels, max_count
        self.add_state("total", torch.zeros(self.shape), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(self.shape), dist_reduce_fx="sum")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value; () for a single number."""
        return ()

    @classmethod
    def heading(cls) -> str:
        """Return the title with the unit."""
        return f"{cls.title} {cls.unit}".strip()

    def update(self, output: ClassifierOutput, labels: Tensor) -> None:
        """Add images.

        Args:
            output: The evaluator's output for B images.
            labels: (B, L), the requested number of objects of each label.

        Raises:
            ValueError: The shapes differ, or a score is NaN or outside [0, 1].
        """
        scores = output.scores
        if scores.shape != labels.shape or scores.ndim != 2:
            raise ValueError(
                f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} are not both (B, L)"
            )
        if not ((scores >= 0) & (scores <= 1)).all():  # NaN fails every comparison
            raise ValueError("the evaluator's scores must be in [0, 1]; some are NaN or beyond")
        total, weight = self.measure(output, labels)
        self.total += total
        self.weight += weight

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor | int]:
        """Return what a batch adds to the numerator and to the denominator."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return the ratio of the sums over the images of all processes."""
        return self.total / self.weight


METRICS: Registry[type[ImageMetric]] = Registry("metric")
"""The metrics of a single number by name, in the order of tables."""

M = TypeVar("M", bound=type[ImageMetric])


def register_metric(metric: M) -> M:
    """Add a metric to every evaluation; a class decorator.

    Raises:
        ValueError: The name has characters other than letters, digits and underscores, or belongs
            to another metric.
    """
    if not metric.name.isidentifier():
        raise ValueError(f"the name of a metric must be an identifier, got {metric.name!r}")
    METRICS.add(metric.name, metric)
    return metric


@register_metric
class LabelAccuracy(ImageMetric):
    """Pooled top-k label accuracy, the course's score.

    For an image with k labels, the labels with the k highest scores are the predictions; of equal
    scores, the first counts as higher. The value is the number of correct predictions divided by
    the number of labels. Extra objects are not penalized.
    """

    name, title, higher_is_better, headline = "accuracy", "accuracy", True, True

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        true = requested(labels)
        return hits(output.scores, true).sum(), true.sum()


@register_metric
class ImageAccuracy(ImageMetric):
    """The share of hits of each image, averaged over images, which some reports give instead.

    Images without a label do not count.
    """

    name, title, higher_is_better = "image_accuracy", "mean over images", True

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        true = requested(labels)
        count = true.sum(1)
        return (hits(output.scores, true).sum(1) / count.clamp(min=1)).sum(), (count > 0).sum()


@register_metric
class ExactMatch(ImageMetric):
    """Share of the images that show exactly their labels, and no object of unclear shape."""

    name, title, higher_is_better, headline = "exact_match", "exact match", True, True

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, int]:
        return exactly_matched(output, labels).sum(), len(labels)


@register_metric
class MissingObjects(ImageMetric):
    """Requested labels that are not shown, per image."""

    name, title, unit, higher_is_better = "missing", "missing objects", "per image", False
    range = (0.0, math.inf)

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, int]:
        return (requested(labels) & ~shown(output.scores)).sum(), len(labels)


@register_metric
class ExtraObjects(ImageMetric):
    """Labels that are shown and were not requested, per image."""

    name, title, unit, higher_is_better = "extra", "extra objects", "per image", False
    range, headline = (0.0, math.inf), True

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, int]:
        return (shown(output.scores) & ~requested(labels)).sum(), len(labels)


@register_metric
class UnclearObjects(ImageMetric):
    """Colors of which an image shows an object without a clear shape, per image."""

    name, title, unit, higher_is_better = "unclear", "unclear objects", "per image", False
    range = (0.0, math.inf)

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, int]:
        if output.unclear is None:
            return torch.zeros_like(self.total), 0
        return shown(output.unclear).sum(), len(labels)


@register_metric
class CountAccuracy(ImageMetric):
    """Share of the images with the requested number of objects; two of one label count as two.

    Images are included if the evaluator can count one object more than requested.
    """

    name, title, higher_is_better = "count_accuracy", "count accuracy", True

    def measure(self, output: ClassifierOutput, labels: Tensor) -> tuple[Tensor, Tensor | int]:
        if output.counts is None:
            return torch.zeros_like(self.total), 0
        wanted = labels.sum(1)
        countable = wanted < self.max_count
        return ((output.counts == wanted) & countable).sum(), countable.sum()


def hits(scores: Tensor, true: Tensor) -> Tensor:
    """Mark the true labels that are among their image's k largest scores, bool (B, L)."""
    ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (ranks < true.sum(1, keepdim=True)) & true


def shown(scores: Tensor) -> Tensor:
    """Mark the labels whose score is above one half, bool, same shape."""
    return scores > THRESHOLD


def requested(labels: Tensor) -> Tensor:
    """Mark the requested labels, bool, same shape."""
    return labels > 0.5


def exactly_matched(output: ClassifierOutput, labels: Tensor) -> Tensor:
    """Mark images that show exactly their labels and no object of unclear shape, bool, (B,)."""
    exact = (shown(output.scores) == requested(labels)).all(1)
    if output.unclear is not None:
        exact &= ~shown(output.unclear).any(1)
    return exact
