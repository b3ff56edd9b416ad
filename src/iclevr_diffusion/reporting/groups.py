"""Lines of a comparison: runs that differ in nothing but the seed, and the spread among them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.scores import Scores
from iclevr_diffusion.utils.statistics import summarize

# What makes no other training, or says where things lie.
NOT_COMPARED = ("seed", "resume", "trainer.enable_progress_bar")
GROUPS_NOT_COMPARED = ("paths.", "logger.", "published.")
NOT_SHOWN = ("name", "published")


@dataclass(frozen=True)
class Measured:
    """A figure with its spread.

    mean, sd: sd is None where there is one value.
    over: what the values are, such as "3 seeds".
    """

    mean: float
    sd: float | None
    over: str


@dataclass(frozen=True)
class Line:
    """Runs that differ in nothing but the seed.

    label: the name, with the settings that tell it from other lines of that name.
    runs: all of them.
    counted: of each seed the newest finished run with scores; figures are of these.
    scores: of each counted run, all made in the same way; empty where they were not.
    differs: the settings that differ among the lines, as this line has them; those that it shares
        with the fewest come first.
    """

    label: str
    runs: list[Run]
    counted: list[Run]
    scores: list[Scores]
    differs: dict[str, str]

    @property
    def first(self) -> Run:
        """The run that stands for the line: images and costs are its."""
        return (self.counted or self.runs)[0]

    @property
    def evaluators(self) -> list[str]:
        """All that read the counted runs, each once."""
        scores = [run.evaluation or run.training for run in self.counted]
        return list(dict.fromkeys(score.evaluator for score in scores if score))

    def measured(self, condition_list: str, measure: str) -> Measured | None:
        """Mean and spread: over the seeds, or where there is one, over the draws of its network."""
        values = [s.values.get(condition_list, {}).get(measure, []) for s in self.scores]
        if not values or not all(values):
            return None
        if len(values) == 1:
            (each,) = values
            over = "one draw" if len(each) == 1 else f"{len(each)} draws"
        else:
            each = [summarize(draws)["mean"] for draws in values]
            over = f"{len(each)} seeds"
        figures = summarize(each)
        return Measured(figures["mean"], figures["sd"], over)


def into_lines(runs: Iterable[Run]) -> list[Line]:
    """The runs, grouped; lines come in the order of their first runs."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        key = tuple(sorted(_compared(run).items())) if run.settings else run.folder
        groups.setdefault(key, []).append(run)
    members = list(groups.values())
    firsts = [group[0] for group in members]
    differing = _differing(firsts)
    shared = {name: Counter(run.settings.get(name) for run in firsts) for name in differing}
    lines = []
    for label, group in zip(
        _labels(list(groups.values()), differing), groups.values(), strict=True
    ):
        own = {name: value for name, value in group[0].settings.items() if name in shared}
        differs = dict(sorted(own.items(), key=lambda item: shared[item[0]][item[1]]))
        lines.append(_line(label, group, differs))
    return lines


def _line(label: str, group: list[Run], differs: dict[str, str]) -> Line:
    newest: dict[str, Run] = {}
    for run in sorted(group, key=lambda run: run.ended):
        if run.state == "finished" and (run.evaluation or run.training):
            newest[run.seed] = run
    counted = [run for run in group if newest.get(run.seed) is run]
    return Line(label, group, counted, comparable(counted), differs)


def comparable(runs: Sequence[Run]) -> list[Scores]:
    """A score of each run, all made in one way: evaluations if all have one, else the training's.

    Nothing where no kind of score is that of one evaluator, one way to draw and the same
    conditions in all of them: such figures have no mean.
    """
    for kind in ([run.evaluation for run in runs], [run.training for run in runs]):
        scores = [score for score in kind if score is not None]
        if len(scores) == len(runs) and len({score.how for score in scores}) == 1:
            return scores
    return []


def _compared(run: Run) -> dict[str, str]:
    return {
        name: value
        for name, value in run.settings.items()
        if name not in NOT_COMPARED
        and name != "published"
        and not name.startswith(GROUPS_NOT_COMPARED)
    }


def _differing(firsts: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, in the order of the configs."""
    known = [_compared(run) for run in firsts if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    return [
        name
        for name in names
        if name not in NOT_SHOWN and len({settings.get(name) for settings in known}) > 1
    ]


def _labels(groups: Sequence[list[Run]], differing: Sequence[str]) -> list[str]:
    """A label for each group, which no other has."""
    labels = []
    for group in groups:
        first = group[0]
        same_name = [other[0] for other in groups if other[0].name == first.name]
        names = [
            name
            for name in differing
            if len({other.settings.get(name) for other in same_name if other.settings}) > 1
        ]
        settings = [f"{name}={first.settings[name]}" for name in names if name in first.settings]
        labels.append(f"{first.name} ({', '.join(settings[:3])})" if settings else first.name)
    taken = Counter(labels)
    return [
        label if taken[label] == 1 else f"{label} [{group[0].place}]"
        for label, group in zip(labels, groups, strict=True)
    ]
