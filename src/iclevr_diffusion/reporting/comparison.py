"""The content of a report on several runs, to be written as a page and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from iclevr_diffusion.reporting import charts, tables
from iclevr_diffusion.reporting.charts import Chart, Key
from iclevr_diffusion.reporting.groups import RunGroup, group_runs
from iclevr_diffusion.reporting.images import Gallery, galleries
from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.tables import Table
from iclevr_diffusion.utils.text import one_line


@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    Attributes:
        title, subtitle: At the top.
        notes: Explanations of the comparison, a paragraph each.
        comparison, not_finished, settings, runs: Tables.
        keys: The looks of the curves.
        training, denoising: Curves.
        holdout, holdout_charts, holdout_keys: Scores of held-out and seen label sets, with plots
            over the held-out fraction.
        factors: Table of separate scores for colors, shapes, binding and count.
        schedules, schedule_keys: Plots of the noise schedules, and their keys.
        galleries: Images.
        problems: What could not be read, by run.
    """

    title: str
    subtitle: str
    notes: list[str]
    comparison: Table
    not_finished: Table
    settings: Table
    runs: Table
    keys: list[Key]
    training: list[Chart]
    denoising: list[Chart]
    holdout: Table
    holdout_charts: list[Chart]
    holdout_keys: list[Key]
    factors: Table
    schedules: list[Chart]
    schedule_keys: list[Key]
    galleries: list[Gallery]
    problems: dict[str, list[str]]


def make_report(runs: Sequence[Run], title: str) -> Report:
    """Compare runs; see :func:`iclevr_diffusion.reporting.runs.read_runs`."""
    groups = group_runs(runs)
    schedules = charts.distinct_schedules(groups)
    fractions = charts.holdout_series(groups)
    shown = galleries(groups)  # adds to the problems of a run
    return Report(
        title=one_line(title),
        subtitle=_subtitle(runs, groups),
        notes=_notes(groups),
        comparison=tables.comparison(groups),
        not_finished=tables.not_finished(runs),
        settings=tables.settings(groups),
        runs=tables.every_run(runs),
        keys=charts.keys_of_curves(groups),
        training=charts.training_charts(groups),
        denoising=charts.denoising_charts(groups),
        holdout=tables.holdout(groups),
        holdout_charts=charts.holdout_charts(fractions),
        holdout_keys=charts.keys(fractions),
        factors=tables.factors(groups),
        schedules=charts.schedule_charts(schedules),
        schedule_keys=charts.keys(schedules),
        galleries=shown,
        problems={run.path: run.problems for run in runs if run.problems},
    )


def _subtitle(runs: Sequence[Run], groups: Sequence[RunGroup]) -> str:
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    rows = "one row" if len(groups) == 1 else f"{len(groups)} rows"
    return f"{datetime.now():%d %B %Y, %H:%M}: {counts}; {rows}."


def _notes(groups: Sequence[RunGroup]) -> list[str]:
    notes = [
        "Runs that differ only in the seed share a row, which shows mean ± standard deviation over"
        " the training seeds. With one training seed, the standard deviation is over the sampling"
        " seeds of that one network; it does not include the variance of training.",
        "Accuracy: for an image with k labels, the k labels with the highest scores are the"
        " evaluator's predictions; the share of correct ones is pooled over all images. Exact match"
        " is the share of the images that show exactly their labels. Extra objects are per image.",
        "Published figures are those of the experiment's lab report: one seed, the course's lists,"
        " the course's evaluator.",
        "Forward FLOPs are those of one pass of one image through the network that generates it."
        " Training FLOPs count a backward pass as two forward passes; for a GAN, they include the"
        " discriminator.",
    ]
    counted = [group for group in groups if group.scores]
    if len({group.scores[0].evaluator for group in counted}) > 1:
        notes.append("These rows have different evaluators, whose scores cannot be compared.")
    elif len({group.scores[0].method for group in counted}) > 1:
        notes.append(
            "These rows were not all sampled in the same way, or not from the same lists: see the"
            " last column."
        )
    for group in groups:
        if group.counted and not group.scores:
            notes.append(
                f"{group.label}: its seeds have different evaluators, sampler settings or lists, so"
                " they are not averaged; the figures of each run are below."
            )
        if sum(run.state == "finished" for run in group.runs) > len(group.counted) > 0:
            notes.append(
                f"{group.label}: a seed was trained more than once, or a run has no scores; the"
                " newest run with scores counts for each seed."
            )
    return notes
