"""Groups of runs that differ only in their seed: the rows of a comparison."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.scores import Scores
from iclevr_diffusion.utils.statistics import summarize

# Settings that do not change the training.
NOT_COMPARED = ("seed", "resume", "trainer.enable_progress_bar", "published")
GROUPS_NOT_COMPARED = ("paths.", "logger.", "published.")
NOT_SHOWN = ("name",)


@dataclass(frozen=True)
class Measured:
    """A figure with its standard deviation.

    Attributes:
        mean: The mean of the values.
        std: None if there is one value.
        over: What the mean is over, such as "3 training seeds".
    """

    mean: float
    std: float | None
    over: str


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seed.

    Attributes:
        label: The name, with the settings that distinguish it from other groups of that name.
        runs: All of them.
        counted: The newest finished run with scores of each seed; figures are of these.
        scores: One per counted run, all measured in the same way; empty if they were not.
        differs: This group's values of the settings in which groups differ. Values that it shares
            with the fewest groups come first.
    """

    label: str
    runs: list[Run]
    counted: list[Run]
    scores: list[Scores]
    differs: dict[str, str]

    @property
    def first(self) -> Run:
        """The run whose images and costs are shown."""
        return (self.counted or self.runs)[0]

    @property
    def evaluators(self) -> list[str]:
        """The evaluators of the counted runs, once each."""
        scores = [run.evaluation or run.training for run in self.counted]
        return list(dict.fromkeys(score.evaluator for score in scores if score))

    def measured(self, condition_list: str, metric: str) -> Measured | None:
        """Return a metric's statistics over the training seeds, or over the seeds of one network.

        Returns:
            None if a run does not have the metric.
        """
        values = [s.values.get(condition_list, {}).get(metric, []) for s in self.scores]
        if not values or not all(values):
            return None
        if len(values) == 1:
            (per_seed,) = values
            over = sampling_seeds(len(per_seed))
        else:
            per_seed = [summarize(of_one).mean for of_one in values]
            over = f"{len(per_seed)} training seeds"
        figures = summarize(per_seed)
        return Measured(figures.mean, figures.std, over)


def sampling_seeds(count: int) -> str:
    """Return the number of seeds of sampling in words."""
    return "1 seed" if count == 1 else f"{count} seeds"


def group_runs(runs: Iterable[Run]) -> list[RunGroup]:
    """Group runs, in the order of the first run of each group."""
    found: dict[object, list[Run]] = {}
    for run in runs:
        key = tuple(sorted(_compared(run).items())) if run.settings else run.folder
        found.setdefault(key, []).append(run)
    groups = list(found.values())
    firsts = [group[0] for group in groups]
    differing = _differing(firsts)
    shared = {name: Counter(run.settings.get(name) for run in firsts) for name in differing}
    result = []
    for label, group in zip(_labels(groups, differing), groups, strict=True):
        own = {name: value for name, value in group[0].settings.items() if name in shared}
        differs = dict(sorted(own.items(), key=lambda item: shared[item[0]][item[1]]))
        result.append(_group(label, group, differs))
    return result


def _group(label: str, runs: list[Run], differs: dict[str, str]) -> RunGroup:
    newest: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.ended):
        if run.state == "finished" and (run.evaluation or run.training):
            newest[run.seed] = run
    counted = [run for run in runs if newest.get(run.seed) is run]
    return RunGroup(label, runs, counted, comparable(counted), differs)


def comparable(runs: Sequence[Run]) -> list[Scores]:
    """Return one score per run, all measured in the same way.

    Returns:
        The evaluations, else the scores at the end of the trainings; empty if neither exist for all
        runs, with the same evaluator, sampler setting and lists: others cannot be averaged.
    """
    for kind in ([run.evaluation for run in runs], [run.training for run in runs]):
        scores = [score for score in kind if score is not None]
        if len(scores) == len(runs) and len({score.method for score in scores}) == 1:
            return scores
    return []


def _compared(run: Run) -> dict[str, str]:
    return {
        name: value
        for name, value in run.settings.items()
        if name not in NOT_COMPARED and not name.startswith(GROUPS_NOT_COMPARED)
    }


def _differing(firsts: Sequence[Run]) -> list[str]:
    """Return the settings in which runs differ, in the order of the configs."""
    known = [_compared(run) for run in firsts if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [
        name
        for name in names
        if name not in NOT_SHOWN and len({settings.get(name) for settings in known}) > 1
    ]


def _words(run: Run, names: Sequence[str], others: Sequence[Run]) -> list[str]:
    """Return what tells a run from others: its options, such as schedule=linear, or its settings.

    Args:
        run: The run.
        names: The settings, in which the runs differ.
        others: All runs that it is told from, itself included.
    """
    words = []
    for group, of_group in groupby(names, lambda name: name.partition(".")[0]):
        members = list(of_group)
        options = {_option(other, group) for other in others}
        values = {tuple(other.settings.get(name) for name in members) for other in others}
        if "" not in options and len(options) == len(values):
            words.append(_option(run, group))
        else:
            words += [f"{name}={run.settings[name]}" for name in members if name in run.settings]
    return words


def _option(run: Run, group: str) -> str:
    """Return the override that chooses an option of a config group, or an empty text."""
    return next((word for word in reversed(run.overrides) if word.startswith(f"{group}=")), "")


def _labels(groups: Sequence[list[Run]], differing: Sequence[str]) -> list[str]:
    """Return a unique label for each group."""
    labels = []
    for group in groups:
        first = group[0]
        same_name = [other[0] for other in groups if other[0].name == first.name]
        names = [
            name
            for name in differing
            if len({other.settings.get(name) for other in same_name if other.settings}) > 1
        ]
        settings = _words(first, names, same_name)
        labels.append(f"{first.name} ({', '.join(settings[:3])})" if settings else first.name)
    taken = Counter(labels)
    return [
        label if taken[label] == 1 else f"{label} [{group[0].path}]"
        for label, group in zip(labels, groups, strict=True)
    ]
