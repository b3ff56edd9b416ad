"""Draw condition lists, and score what was drawn."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from iclevr_diffusion.data.labels import COLORS, NAMES, LabelSet, encode_all
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.diffusion.pipeline import Pipeline, refuse_nan
from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.evaluation.classifier import ClassifierOutput, Evaluator
from iclevr_diffusion.evaluation.metrics import (
    AccuracyPerCount,
    AccuracyPerLabel,
    Confusion,
    CountAccuracy,
    ExactMatch,
    ExtraObjects,
    FrechetDistance,
    ImageAccuracy,
    KernelDistance,
    LabelAccuracy,
    MissingObjects,
    UnclearObjects,
)
from iclevr_diffusion.utils.rng import image_generators
from iclevr_diffusion.utils.statistics import summarize

CHUNK = 128  # images at once; none depends on the others

MEASURES = {
    "accuracy": LabelAccuracy,
    "image_accuracy": ImageAccuracy,
    "exact_match": ExactMatch,
    "missing": MissingObjects,
    "extra": ExtraObjects,
}


SECOND_MEASURES = ("accuracy", "exact_match")  # of the second evaluator


class EvaluationMetrics(nn.Module):
    """All that is counted about images and the labels they were to show.

    In several processes each adds its own images, and :meth:`compute` is the same in all.

    Args:
        evaluator: reads the images.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.measures = MetricCollection(
            {name: kind() for name, kind in MEASURES.items()}, compute_groups=False
        )
        self.per_label = AccuracyPerLabel()
        self.per_count = AccuracyPerCount()
        self.confusion = Confusion()
        self.count = CountAccuracy()
        self.unclear = UnclearObjects()

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> ClassifierOutput:
        """Add images (B, 3, H, W) in [-1, 1] and their labels (B, L); tells what was read.

        Raises:
            ValueError: a value of the images is NaN or outside [-1, 1].
        """
        reading = read(self.evaluator, images)
        self.add(reading, labels)
        return reading

    def add(self, reading: ClassifierOutput, labels: Tensor) -> None:
        """Add images that were read already."""
        self.measures.update(reading.scores, labels, unclear=reading.unclear)
        if reading.unclear is not None:
            self.unclear.update(reading.unclear)
        for metric in (self.per_label, self.per_count, self.confusion):
            metric.update(reading.scores, labels)
        if reading.counts is not None:
            # One object more than asked for must still be within what it can count.
            counted = labels.sum(1) < self.evaluator.max_count
            self.count.update(reading.counts[counted], labels[counted])

    def compute(self) -> dict[str, float]:
        """The measures by name; ``count`` and ``unclear`` are missing where nothing was told."""
        result = {name: float(value) for name, value in self.measures.compute().items()}
        if self.evaluator.says_unclear:
            result["unclear"] = float(self.unclear.compute())
        count = float(self.count.compute()) if self.evaluator.max_count else math.nan
        return result if math.isnan(count) else {**result, "count": count}

    def by_label(self) -> dict[str, float]:
        """Accuracy of each label that was asked for."""
        values = self.per_label.compute().tolist()
        return {name: v for name, v in zip(NAMES, values, strict=True) if v == v}

    def by_count(self) -> dict[str, float]:
        """Accuracy of the images with k labels, by k."""
        return {str(k): v for k, v in enumerate(self.per_count.compute().tolist()) if v == v}


def read(evaluator: Evaluator, images: Tensor) -> ClassifierOutput:
    """What the evaluator sees in any number of images, (N, 3, H, W) in [-1, 1].

    Raises:
        ValueError: a value is NaN or outside [-1, 1].
    """
    parts = zip(*map(evaluator, images.split(CHUNK)), strict=True)
    return ClassifierOutput(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]


def all_scores(reading: ClassifierOutput) -> Tensor:
    """The scores of labels, (B, L), and of unclear colors where there are any, (B, L + 8)."""
    parts = [reading.scores] if reading.unclear is None else [reading.scores, reading.unclear]
    return torch.cat(parts, 1)


def names_read(scores: Tensor) -> list[LabelSet]:
    """What was read in each image: its labels, and ``unclear red`` for a red object of no shape.

    Args:
        scores: as :func:`all_scores` gives them.
    """
    names = [*NAMES, *(f"unclear {color}" for color in COLORS)]
    return [
        tuple(names[index] for index in row.nonzero().flatten().tolist())
        for row in (scores > 0.5).cpu()
    ]


class AccuracyByStep:
    """An ``on_step`` callback: the accuracy of the estimate of x_0, and of x_t, after each step.

    The estimate shows its objects long before x_t does, in which they are still under noise.

    Args:
        evaluator: reads both; of x_t what lies outside of [-1, 1] is cut off.
        labels: of all images, (B, L).
        steps: of the sampling.
    """

    def __init__(self, evaluator: Evaluator, labels: Tensor, steps: int) -> None:
        self.evaluator = evaluator
        self.labels = labels
        self._of_x0 = [LabelAccuracy().to(labels.device) for _ in range(steps)]
        self._of_x_t = [LabelAccuracy().to(labels.device) for _ in range(steps)]

    def __call__(self, step: Step) -> None:
        for images, metrics in ((step.x0, self._of_x0), (step.x_t.clamp(-1, 1), self._of_x_t)):
            reading = self.evaluator(images)
            metrics[step.number].update(reading.scores, self.labels[step.rows])

    def values(self) -> tuple[list[float], list[float]]:
        """One number a step: of the estimate of x_0, of x_t."""
        of_x0, of_x_t = (
            [float(metric.compute()) for metric in metrics]
            for metrics in (self._of_x0, self._of_x_t)
        )
        return of_x0, of_x_t


@dataclass(frozen=True)
class ListScore:
    """What was measured on the drawings of one condition list.

    conditions: its label sets.
    draws: the measures of each draw, in the order of the seeds.
    by_count, by_label: accuracy over all draws.
    by_step, by_step_x_t: accuracy of the estimate of x_0, and of x_t, after each step of the first
        draw; empty where they were not read.
    distances: Fréchet and kernel distance of all draws to the reference, where there is one.
    images, read: the first draw, (N, 3, H, W) in [-1, 1], and what was read in each image.
    confusion: over all draws.
    second_draws: what a second evaluator measures in each draw, for comparison; empty without one.
    seconds: of drawing, an image; None with one draw, which is also read after each step.
    """

    conditions: list[LabelSet]
    draws: list[dict[str, float]]
    by_count: dict[str, float]
    by_label: dict[str, float]
    by_step: list[float]
    by_step_x_t: list[float]
    distances: dict[str, float]
    images: Tensor
    read: list[LabelSet]
    confusion: Confusion
    seconds: float | None
    second_draws: list[dict[str, float]] = field(default_factory=list)

    def measures(self) -> dict[str, dict[str, Any]]:
        """Each measure's spread over the draws."""
        return _summaries(self.draws)

    def second_measures(self) -> dict[str, dict[str, Any]]:
        """As :meth:`measures`, of the second evaluator; empty without one."""
        return _summaries(self.second_draws)

    def wrong(self) -> list[bool]:
        """Which images of the first draw do not show exactly their labels."""
        pairs = zip(self.conditions, self.read, strict=True)
        return [set(asked) != set(read) for asked, read in pairs]


def _summaries(draws: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {
        name: summarize(
            [draw[name] for draw in draws],
            least=0.0,
            most=math.inf if name in ("missing", "extra", "unclear") else 1.0,
        )
        for name in (draws[0] if draws else ())
    }


def score_list(
    pipeline: Pipeline,
    evaluator: Evaluator,
    conditions: Sequence[LabelSet],
    seeds: int,
    reference: Tensor | None = None,
    batch_size: int = 64,
    on_step: Callable[[Step], None] | None = None,
    progress: Callable[[int], object] = lambda images: None,
    by_step: bool = True,
    second: Evaluator | None = None,
) -> ListScore:
    """Draw a condition list ``seeds`` times, and measure what was drawn.

    Args:
        draw, batch_size: how to draw.
        evaluator: reads the images, on the device of the network that draws.
        conditions: the label sets.
        seeds: draws; draw s of condition i has noise of its own, a function of (s, i).
        reference: the evaluator's features of real images, (R, F), to measure distances to.
        on_step: sees the first draw.
        progress: told of each draw's images as they are done.
        by_step: whether each step of the first draw is read, which takes about as long as to draw.
        second: an evaluator that reads the same images, to be shown beside the other.

    Raises:
        ValueError: the list is empty, or there is less than one seed.
        UserError: the network draws something that is no number.
    """
    if not conditions:
        raise ValueError("the condition list is empty")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    device = evaluator.device
    labels = encode_all(conditions).to(device)
    steps = AccuracyByStep(evaluator, labels, pipeline.steps if by_step else 0)

    def watch_first(step: Step) -> None:
        refuse_nan(step.x0)
        if by_step:
            steps(step)
        if on_step is not None:
            on_step(step)

    over_all = EvaluationMetrics(evaluator).to(device)
    draws, second_draws, features, first, seconds = [], [], [], None, 0.0
    for seed in range(seeds):
        start = time.perf_counter()
        generators = image_generators(seed, range(len(labels)), "evaluate")
        images = pipeline(labels, generators, watch_first if seed == 0 else None, batch_size)
        refuse_nan(images)
        # The first draw is also watched, which takes time of its own.
        seconds += time.perf_counter() - start if seed else 0.0
        metrics = EvaluationMetrics(evaluator).to(device)
        reading = metrics.update(images, labels)
        over_all.add(reading, labels)
        draws.append(metrics.compute())
        features.append(reading.features)
        if second is not None:
            second_draws.append(second_opinion(second, images, labels))
        if first is None:
            first = images.cpu(), names_read(all_scores(reading))
        progress(len(labels))
    assert first is not None
    return ListScore(
        list(conditions),
        draws,
        over_all.by_count(),
        over_all.by_label(),
        *steps.values(),
        {} if reference is None else distances(torch.cat(features), reference),
        *first,
        over_all.confusion.cpu(),
        seconds / ((seeds - 1) * len(labels)) if seeds > 1 else None,
        second_draws,
    )


def second_opinion(evaluator: Evaluator, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy and exact matches of images (B, 3, H, W), as a second evaluator reads them."""
    metrics = EvaluationMetrics(evaluator).to(evaluator.device)
    metrics.update(images, labels)
    measures = metrics.compute()
    return {name: measures[name] for name in SECOND_MEASURES}


def distances(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Fréchet and kernel distance between two sets of features, (N, F) and (R, F).

    Nothing where one of them has fewer than two images.
    """
    result: dict[str, float] = {}
    if min(len(features), len(reference)) < 2:
        return result
    for name, kind in (("frechet", FrechetDistance), ("kernel", KernelDistance)):
        metric = kind(features.shape[1])  # on the CPU: not every accelerator has float64
        metric.update(features.cpu(), real=False)
        metric.update(reference.cpu(), real=True)
        result[name] = float(metric.compute())
    return result


@torch.no_grad()
def features_of(evaluator: Evaluator, images: Tensor) -> Tensor:
    """The evaluator's features (N, F) of frames, uint8 (N, 3, H, W), on its device."""
    device = evaluator.device
    parts = [evaluator(to_unit_range(part.to(device))).features for part in images.split(CHUNK)]
    return torch.cat(parts)
