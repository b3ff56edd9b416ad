"""Generate the images of condition lists, and score them."""

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.diffusion.pipeline import Pipeline, refuse_nan
from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.evaluation.breakdowns import Confusion
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import shown_names
from iclevr_diffusion.evaluation.distances import distances
from iclevr_diffusion.evaluation.factors import FACTOR_RANGES, FactorTotals
from iclevr_diffusion.evaluation.metric_collection import (
    AccuracyByStep,
    EvaluationMetrics,
    second_opinion,
)
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.evaluation.results import Fidelity, ListResult, SettingResult
from iclevr_diffusion.utils.rng import image_generators
from iclevr_diffusion.utils.statistics import Statistics, summarize


@dataclass(frozen=True)
class ListScore:
    """The scores of the images generated for one condition list.

    Attributes:
        conditions: its N label sets.
        per_seed: the metrics by name, of each seed.
        by_count, by_label: accuracy over all seeds.
        by_step, by_step_x_t: accuracy of the estimate of x_0 and of x_t after each step, with the
            first seed; empty if they were not classified.
        distances: Fréchet and kernel distance of the images of all seeds to the reference, if there
            is one.
        images, shown: of the first seed, (N, 3, H, W) in [-1, 1], and what each image shows.
        confusion: over all seeds.
        vocabulary: of the labels.
        seconds: of sampling, per image; None with one seed, whose steps are classified meanwhile.
        network_calls: per image, the mean over the conditions.
        factors_per_seed: :meth:`.factors.FactorTotals.factors` of each seed.
        shown_by_group, exact_by_number: as :class:`~.factors.FactorTotals`, over all seeds.
        second_per_seed: the metrics of the second evaluator; empty without one.
    """

    conditions: list[LabelSet]
    per_seed: list[dict[str, float]]
    by_count: dict[str, float]
    by_label: dict[str, float]
    by_step: list[float]
    by_step_x_t: list[float]
    distances: dict[str, float]
    images: Tensor
    shown: list[LabelSet]
    confusion: Confusion
    vocabulary: Vocabulary
    seconds: float | None
    network_calls: float
    factors_per_seed: list[dict[str, float]]
    shown_by_group: dict[str, dict[str, float]]
    exact_by_number: dict[str, float]
    second_per_seed: list[dict[str, float]] = field(default_factory=list)

    def result(self) -> ListResult:
        """Return what ``evaluation.json`` has of it, with the statistics over the seeds."""
        return ListResult(
            conditions=len(self.conditions),
            metrics=_statistics(self.per_seed, _metric_ranges()),
            second_evaluator=_statistics(self.second_per_seed, _metric_ranges()),
            seconds_per_image=self.seconds and round(self.seconds, 5),
            distances=self.distances,
            by_count=self.by_count,
            by_label=self.by_label,
            by_step=self.by_step,
            by_step_x_t=self.by_step_x_t,
            factors=_statistics(self.factors_per_seed, FACTOR_RANGES),
            shown_by_group=self.shown_by_group,
            exact_by_number=self.exact_by_number,
            network_calls=self.network_calls,
        )

    def wrong(self) -> list[bool]:
        """Mark the images of the first seed that do not show exactly their labels."""
        pairs = zip(self.conditions, self.shown, strict=True)
        return [set(asked) != set(shown) for asked, shown in pairs]


def _metric_ranges() -> dict[str, tuple[float, float]]:
    return {name: metric.range for name, metric in METRICS.items()}


def _statistics(
    per_seed: Sequence[dict[str, float]], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Statistics]:
    # A metric may be missing where an evaluator gave nothing to compute it from.
    names = [name for name in (per_seed[0] if per_seed else ()) if all(name in s for s in per_seed)]
    return {name: summarize([values[name] for values in per_seed], *ranges[name]) for name in names}


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
    """Generate the images of a condition list with several seeds, and score them.

    Args:
        pipeline: samples the images.
        evaluator: classifies them, on the device of the network.
        conditions: the label sets.
        seeds: how many; the noise of condition i with seed s is a function of (s, i).
        reference: the evaluator's features of real images, (R, F), to measure distances to.
        batch_size: of the sampling.
        on_step: sees the steps of the first seed.
        progress: is called with the number of images after each seed.
        by_step: classify each step of the first seed, which takes about as long as sampling.
        second: an evaluator that classifies the same images, to report beside the first.

    Raises:
        ValueError: the list is empty, or ``seeds`` is less than one.
        UserError: the network generates NaN or infinite values.
    """
    if not conditions:
        raise ValueError("the condition list is empty")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    device = evaluator.device
    labels = evaluator.vocabulary.encode_all(conditions).to(device)
    steps = AccuracyByStep(evaluator, labels, pipeline.steps if by_step else 0)

    def watch_first(step: Step) -> None:
        refuse_nan(step.x0)
        if by_step:
            steps(step)
        if on_step is not None:
            on_step(step)

    over_all = EvaluationMetrics(evaluator).to(device)
    factors_over_all = _factor_totals(pipeline, evaluator)
    per_seed, second_per_seed, factors_per_seed = [], [], []
    features, first, seconds = [], None, 0.0
    for seed in range(seeds):
        start = time.perf_counter()
        generators = image_generators(seed, range(len(labels)), "evaluate")
        watch = watch_first if seed == 0 else None
        positions = pipeline.sample_positions(labels, generators)
        images = pipeline(labels, generators, watch, batch_size, positions)
        refuse_nan(images)
        # The first seed is not timed, because its steps are classified.
        seconds += time.perf_counter() - start if seed else 0.0
        metrics = EvaluationMetrics(evaluator).to(device)
        output = metrics.update(images, labels)
        over_all.add(output, labels)
        per_seed.append(metrics.compute())
        factors = _factor_totals(pipeline, evaluator)
        for totals in (factors, factors_over_all):
            totals.add(output, labels, positions)
        factors_per_seed.append(factors.factors())
        features.append(output.features)
        if second is not None:
            second_per_seed.append(second_opinion(second, images, labels))
        if first is None:
            first = images.cpu(), shown_names(output.all_scores, evaluator.vocabulary)
        progress(len(labels))
    assert first is not None
    first_images, first_shown = first
    by_step_x0, by_step_x_t = steps.values()
    return ListScore(
        conditions=list(conditions),
        per_seed=per_seed,
        by_count=over_all.by_count(),
        by_label=over_all.by_label(),
        by_step=by_step_x0,
        by_step_x_t=by_step_x_t,
        distances={} if reference is None else distances(torch.cat(features), reference),
        images=first_images,
        shown=first_shown,
        confusion=over_all.confusion.cpu(),
        vocabulary=evaluator.vocabulary,
        seconds=seconds / ((seeds - 1) * len(labels)) if seeds > 1 else None,
        network_calls=pipeline.network_calls(labels),
        factors_per_seed=factors_per_seed,
        shown_by_group=factors_over_all.shown_by_group(),
        exact_by_number=factors_over_all.exact_by_number(),
        second_per_seed=second_per_seed,
    )


def _factor_totals(pipeline: Pipeline, evaluator: Evaluator) -> FactorTotals:
    prior = pipeline.position_prior
    center = None if prior is None else prior.first
    return FactorTotals(evaluator.vocabulary, evaluator.max_count, center)


def setting_result(
    pipeline: Pipeline, scores: Mapping[str, ListScore], fidelity: Fidelity | None = None
) -> SettingResult:
    """Return what ``evaluation.json`` has of one way to sample, with the scores by list."""
    options = pipeline.description()
    counts = [len(score.conditions) for score in scores.values()]
    calls = [score.network_calls for score in scores.values()]
    return SettingResult(
        name=str(pipeline),
        sampler=options.pop("sampler"),
        steps=options.pop("steps"),
        guidance_scale=options.pop("guidance_scale"),
        network_calls=sum(map(operator.mul, counts, calls)) / sum(counts),
        layout=options.pop("layout"),
        options=options,
        lists={name: score.result() for name, score in scores.items()},
        fidelity=fidelity,
    )
