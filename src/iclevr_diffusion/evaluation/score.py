"""Generate the images of condition lists, and score them."""

import operator
import time
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.diffusion.pipeline import Pipeline, refuse_nan
from iclevr_diffusion.diffusion.samplers import OnStep, Step
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.list_score import ListScore, ListScorer
from iclevr_diffusion.evaluation.metric_collection import AccuracyByStep
from iclevr_diffusion.evaluation.results import Fidelity, SettingResult
from iclevr_diffusion.utils.checks import check_at_least
from iclevr_diffusion.utils.rng import image_generators


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
        pipeline: Samples the images.
        evaluator: Classifies them, on the device of the network.
        conditions: The label sets.
        seeds: How many; the noise of condition i with seed s is a function of (s, i).
        reference: The evaluator's features of real images, (R, F), to measure distances to.
        batch_size: Images at once.
        on_step: Sees the steps of the first seed.
        progress: Is called after each batch, with its number of images.
        by_step: Classify each step of the first seed, as
            :class:`~.metric_collection.AccuracyByStep` does.
        second: An evaluator that classifies the same images, to report beside the first.

    Raises:
        ValueError: The list is empty, or ``seeds`` is less than one.
        UserError: The network generates NaN or infinite values.
    """
    check_at_least("seeds", seeds, 1)
    prior = pipeline.position_prior
    center = None if prior is None else prior.first
    scorer = ListScorer(evaluator, conditions, second, reference, center)
    labels = scorer.labels
    steps = AccuracyByStep(evaluator, labels, pipeline.steps if by_step else 0)

    def count_batch(step: Step) -> None:
        if step.number == pipeline.steps - 1:
            progress(len(step.x0))

    def watch_first(step: Step) -> None:
        count_batch(step)
        refuse_nan(step.x0)
        if by_step:
            steps(step)
        if on_step is not None:
            on_step(step)

    seconds = 0.0
    for seed in range(seeds):
        start = time.perf_counter()
        watch = count_batch if seed else watch_first
        images, positions = sample_seed(pipeline, labels, seed, batch_size, watch)
        # The first seed is not timed, because its steps are classified.
        seconds += time.perf_counter() - start if seed else 0.0
        scorer.add(images, positions)
    return scorer.score(
        by_step=steps.values(),
        seconds=seconds / ((seeds - 1) * len(labels)) if seeds > 1 else None,
        network_calls=pipeline.network_calls(labels),
    )


def sample_seed(
    pipeline: Pipeline, labels: Tensor, seed: int, batch_size: int, on_step: OnStep | None
) -> tuple[Tensor, Tensor | None]:
    """Generate an image for each row of ``labels``; image i depends on (seed, i) alone.

    Returns:
        The images, (N, C, H, W) in [-1, 1], and the positions of the objects, (N, L, D), or None.

    Raises:
        UserError: The network generates NaN or infinite values.
    """
    generators = image_generators(seed, range(len(labels)), "evaluate")
    positions = pipeline.sample_positions(labels, generators)
    images = pipeline(labels, generators, on_step, batch_size, positions)
    refuse_nan(images)
    return images, positions


def setting_result(
    pipeline: Pipeline, scores: Mapping[str, ListScore], fidelity: Fidelity | None = None
) -> SettingResult:
    """Return the entry of a pipeline in ``evaluation.json``, with the scores by list."""
    options = pipeline.description()
    counts = [len(score.conditions) for score in scores.values()]
    calls = [score.result.network_calls or 0.0 for score in scores.values()]
    return SettingResult(
        name=str(pipeline),
        sampler=options.pop("sampler"),
        steps=options.pop("steps"),
        guidance_scale=options.pop("guidance_scale"),
        network_calls=sum(map(operator.mul, counts, calls)) / sum(counts),
        layout=options.pop("layout"),
        options=options,
        lists={name: score.result for name, score in scores.items()},
        fidelity=fidelity,
    )


def given_images(scores: Mapping[str, ListScore]) -> SettingResult:
    """Return the entry of given images in ``evaluation.json``, with the scores by list."""
    lists = {name: score.result for name, score in scores.items()}
    return SettingResult("given images", "", 0, 1.0, 0.0, lists)
