"""The scores of a run: of its evaluation, and those from its training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.evaluation.lists import OURS
from iclevr_diffusion.evaluation.results import Evaluation


@dataclass(frozen=True)
class Scores:
    """The scores of one network by one evaluator.

    Attributes:
        evaluator: Its name.
        sampled_with: The sampler setting, in words.
        lists: The origin of the condition lists, in words.
        values: By list and metric, one value per seed.
        by_step: By list, the accuracy after each denoising step with the first seed.
        factors: By list and factor (:data:`~iclevr_diffusion.evaluation.factors.FACTOR_TITLES`),
            the mean over the seeds; empty without an evaluation.
    """

    evaluator: str
    sampled_with: str
    lists: str
    values: Mapping[str, Mapping[str, list[float]]]
    by_step: Mapping[str, list[float]] = field(default_factory=dict)
    factors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def method(self) -> tuple[str, str, str]:
        """The evaluator, sampler setting and lists; only scores with the same ones are averaged."""
        return self.evaluator, self.sampled_with, self.lists

    @property
    def seeds(self) -> int:
        """The number of sampling seeds."""
        return max(len(v) for metrics in self.values.values() for v in metrics.values())


def scores_of_evaluation(evaluation: Evaluation, default_sampling: str) -> Scores | None:
    """Return the scores of an evaluation; None if it has none.

    Args:
        evaluation: The evaluation of the run's weights.
        default_sampling: How the weights sample by default, in words; of an evaluation with several
            settings that one is taken, else the first.
    """
    if not evaluation.settings:
        return None
    settings = {setting.name: setting for setting in reversed(evaluation.settings)}
    setting = settings.get(default_sampling, evaluation.settings[0])
    values = {
        name: {metric: of_metric.per_seed for metric, of_metric in result.metrics.items()}
        for name, result in setting.lists.items()
    }
    if not any(per_seed for metrics in values.values() for per_seed in metrics.values()):
        return None
    origins = [evaluation.lists[name] for name in TEST_LISTS if name in evaluation.lists]
    by_step = {name: result.by_step for name, result in setting.lists.items()}
    lists = ", ".join(dict.fromkeys(origins))
    factors = {
        name: {factor: of_factor.mean for factor, of_factor in result.factors.items()}
        for name, result in setting.lists.items()
        if result.factors
    }
    return Scores(evaluation.evaluator, setting.name, lists, values, by_step, factors)


def scores_of_training(summary: Summary) -> Scores | None:
    """Return the scores of the checkpoint that the training has kept, of one seed."""
    values: dict[str, dict[str, list[float]]] = {}
    for key, value in summary.weights.scores.items():
        _, _, path = key.partition("/")
        name, _, metric = path.rpartition("/")
        values.setdefault(name, {})[metric] = [value]
    if not values:
        return None
    return Scores(summary.evaluator, summary.weights.sampled_with, origin_of_lists(summary), values)


def origin_of_lists(summary: Summary) -> str:
    """Return the origin of the condition lists that a training scored, in words."""
    source = summary.data_source or ("synthetic" if summary.data == "synthetic" else "iclevr")
    origin = {"synthetic": OURS, "iclevr": "the course's"}.get(source, f"the data's ({source})")
    most = summary.weights.max_conditions
    return origin if most is None else f"{origin}, at most {most} conditions of each"
