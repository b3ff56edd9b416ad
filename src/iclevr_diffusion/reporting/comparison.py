"""A report: what a set of runs says, put together once and written as a page and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from iclevr_diffusion.reporting import charts, tables
from iclevr_diffusion.reporting.charts import Chart, Key
from iclevr_diffusion.reporting.groups import Line, into_lines
from iclevr_diffusion.reporting.images import Gallery, galleries
from iclevr_diffusion.reporting.run_files import one_line
from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.tables import Table

FINISHED = "finished"


@dataclass(frozen=True)
class Report:
    """Everything that is shown.

    notes: what to know when reading the comparison, a sentence each.
    problems: what could not be read, by run.
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
    schedules: list[Chart]
    schedule_keys: list[Key]
    galleries: list[Gallery]
    problems: dict[str, list[str]]


def make_report(runs: Sequence[Run], title: str) -> Report:
    """Compare runs; see :func:`iclevr_diffusion.reporting.runs.read_runs`."""
    lines = into_lines(runs)
    schedules = charts.distinct_schedules(lines)
    shown = galleries(lines)  # what is wrong with an image is noted when it is read
    return Report(
        title=one_line(title),
        subtitle=_subtitle(runs, lines),
        notes=_notes(lines),
        comparison=tables.comparison(lines),
        not_finished=tables.not_finished(runs),
        settings=tables.settings(lines),
        runs=tables.every_run(runs),
        keys=charts.keys_of_curves(lines),
        training=charts.training_charts(lines),
        denoising=charts.denoising_charts(lines),
        schedules=charts.schedule_charts(schedules),
        schedule_keys=charts.keys(schedules),
        galleries=shown,
        problems={run.place: run.problems for run in runs if run.problems},
    )


def _subtitle(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    rows = "one row" if len(lines) == 1 else f"{len(lines)} rows"
    return f"{datetime.now():%d %B %Y, %H:%M}: {counts}; {rows}."


def _notes(lines: Sequence[Line]) -> list[str]:
    notes = [
        "Runs that differ in nothing but the seed share a row: mean ± standard deviation over the"
        " training seeds. Where there is one seed, the spread is that of the draws of its one"
        " network, and says nothing of another training; of one draw nothing is known.",
        "Accuracy is pooled: of an image with k labels the evaluator's k highest scores are the"
        " answer. Exact match is the share of the images that show their labels and no others;"
        " extra objects are counted an image.",
        "Published figures are single draws of the reports, on the course's lists, read by the"
        " course's evaluator.",
        "FLOPs, forward: of one image once through the network that draws. Training: a pass"
        " backward counts as two forward; of a GAN the discriminator's passes are in it.",
    ]
    counted = [line for line in lines if line.scores]
    if len({line.scores[0].evaluator for line in counted}) > 1:
        notes.append("These rows were read by different evaluators, which do not compare.")
    elif len({line.scores[0].how for line in counted}) > 1:
        notes.append(
            "These rows were not all drawn in the same way, or not from the same lists: see the"
            " last column."
        )
    for line in lines:
        if line.counted and not line.scores:
            notes.append(
                f"{line.label}: its seeds were read or drawn in different ways, so they have no"
                " mean; each run's own figures are below."
            )
        if sum(run.state == FINISHED for run in line.runs) > len(line.counted) > 0:
            notes.append(
                f"{line.label}: a seed ran more than once, or a run has no scores; of each seed the"
                " newest run with scores counts."
            )
    return notes
