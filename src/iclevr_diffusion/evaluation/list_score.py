"""The scores of the images of one condition list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.evaluation.breakdowns import Confusion
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import is_exact, shown_names
from iclevr_diffusion.evaluation.distances import distances
from iclevr_diffusion.evaluation.factors import FACTOR_RANGES, FactorTotals
from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics, second_opinion
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.evaluation.results import ListResult
from iclevr_diffusion.utils.statistics import Statistics, summarize


@dataclass(frozen=True)
class ListScore:
    """The scores of the images of one condition list.

    Attributes:
        conditions: Its N label sets.
        vocabulary: The labels.
        per_seed: The metrics by name, of each seed.
        second_per_seed: The metrics of the second evaluator; empty without one.
        images, shown: The images of the first seed, (N, 3, H, W) in [-1, 1], and what each shows.
        confusion: Over all seeds.
        result: Its entry in ``evaluation.json``, with the statistics over the seeds.
    """

    conditions: list[LabelSet]
    vocabulary: Vocabulary
    per_seed: list[dict[str, float]]
    second_per_seed: list[dict[str, float]]
    images: Tensor
    shown: list[LabelSet]
    confusion: Confusion
    result: ListResult

    def wrong(self) -> list[bool]:
        """Mark the images of the first seed that do not show exactly their labels."""
        pairs = zip(self.conditions, self.shown, strict=True)
        return [not is_exact(*pair) for pair in pairs]


class ListScorer:
    """Scores the images of one condition list, seed by seed.

    Args:
        evaluator: Classifies the images.
        conditions: The N label sets.
        second: An evaluator that classifies the same images, to report beside the first.
        reference: The evaluator's features of real images, (R, F), to measure distances to.
        center: (2,), the first position of the training images; None without positions.

    Raises:
        ValueError: The list is empty.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        conditions: Sequence[LabelSet],
        second: Evaluator | None = None,
        reference: Tensor | None = None,
        center: Tensor | None = None,
    ) -> None:
        if not conditions:
            raise ValueError("the condition list is empty")
        self.evaluator, self.second = evaluator, second
        self.conditions = list(conditions)
        self.labels = evaluator.vocabulary.encode_all(conditions).to(evaluator.device)
        self._reference, self._center = reference, center
        self._over_all = EvaluationMetrics(evaluator).to(evaluator.device)
        self._factors_over_all = self._factor_totals()
        self._per_seed: list[dict[str, float]] = []
        self._second_per_seed: list[dict[str, float]] = []
        self._factors_per_seed: list[dict[str, float]] = []
        self._features: list[Tensor] = []
        self._first: tuple[Tensor, list[LabelSet]] | None = None

    def add(self, images: Tensor, positions: Tensor | None = None) -> None:
        """Add the images of one seed.

        Args:
            images: (N, 3, H, W), in [-1, 1], on the evaluator's device.
            positions: (N, L, D), of the requested objects; None if unknown.
        """
        metrics = EvaluationMetrics(self.evaluator).to(self.evaluator.device)
        output = metrics.update(images, self.labels)
        self._over_all.add(output, self.labels)
        self._per_seed.append(metrics.compute())
        factors = self._factor_totals()
        for totals in (factors, self._factors_over_all):
            totals.add(output, self.labels, positions)
        self._factors_per_seed.append(factors.factors())
        self._features.append(output.features)
        if self.second is not None:
            self._second_per_seed.append(second_opinion(self.second, images, self.labels))
        if self._first is None:
            self._first = images.cpu(), shown_names(output.all_scores, self.evaluator.vocabulary)

    def score(
        self,
        by_step: tuple[list[float], list[float]] = ([], []),
        seconds: float | None = None,
        network_calls: float | None = None,
    ) -> ListScore:
        """Return the scores of all seeds.

        Args:
            by_step: Accuracy of the estimate of x_0, and of x_t, after each step; [] if unknown.
            seconds: Sampling time per image; None if unknown.
            network_calls: Per image, the mean over the conditions; None if unknown.
        """
        assert self._first is not None
        images, shown = self._first
        reference, ranges = self._reference, {name: kind.range for name, kind in METRICS.items()}
        result = ListResult(
            conditions=len(self.conditions),
            metrics=_statistics(self._per_seed, ranges),
            second_evaluator=_statistics(self._second_per_seed, ranges),
            seconds_per_image=seconds and round(seconds, 5),
            distances={} if reference is None else distances(torch.cat(self._features), reference),
            by_count=self._over_all.by_count(),
            by_label=self._over_all.by_label(),
            by_step=by_step[0],
            by_step_x_t=by_step[1],
            factors=_statistics(self._factors_per_seed, FACTOR_RANGES),
            shown_by_group=self._factors_over_all.shown_by_group(),
            exact_by_number=self._factors_over_all.exact_by_number(),
            network_calls=network_calls,
        )
        return ListScore(
            self.conditions,
            self.evaluator.vocabulary,
            self._per_seed,
            self._second_per_seed,
            images,
            shown,
            self._over_all.confusion.cpu(),
            result,
        )

    def _factor_totals(self) -> FactorTotals:
        return FactorTotals(self.evaluator.vocabulary, self.evaluator.max_count, self._center)


def _statistics(
    per_seed: Sequence[dict[str, float]], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Statistics]:
    # A metric may be missing where an evaluator gave nothing to compute it from.
    names = [name for name in (per_seed[0] if per_seed else ()) if all(name in s for s in per_seed)]
    return {name: summarize([values[name] for values in per_seed], *ranges[name]) for name in names}
