"""The tables of a report, as values: the page and the Markdown file show the same cells."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.data.holdout import HELD_OUT, SEEN
from iclevr_diffusion.evaluation.factors import FACTOR_FORMATS, FACTOR_TITLES
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.reporting import cells
from iclevr_diffusion.reporting.cells import Cell, figure, text
from iclevr_diffusion.reporting.groups import RunGroup, sampling_seeds
from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.scores import Scores
from iclevr_diffusion.utils.statistics import summarize

NUMBER, SENTENCES = "number", "sentences"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        group: The heading above, which it shares with its neighbors.
        kind: ``words``, ``number`` or ``sentences``, which need more room.
    """

    title: str
    group: str = ""
    kind: str = "words"


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns, and a state for each row."""

    columns: list[Column]
    rows: list[list[Cell]]
    states: list[str]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper headings with the number of their columns; empty if no column has one."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if column.group and found and found[-1][0] == column.group:
                found[-1] = column.group, found[-1][1] + 1
            else:
                found.append((column.group, 1))
        return found if any(group for group, _ in found) else []


def comparison(groups: Sequence[RunGroup]) -> Table:
    """Compare groups, one per row: scores, published figures, cost, and method.

    Columns of a condition list without any figure are left out.
    """
    columns: list[tuple[Column, Callable[[RunGroup], Cell]]] = [
        (Column("run"), lambda group: text(group.label, cells.seeds(group))),
        (Column("status"), cells.status),
    ]
    for name in TEST_LISTS:
        columns.append(
            (Column("published", name, NUMBER), partial(cells.published, condition_list=name))
        )
        columns += [
            (
                Column(METRICS[metric].title, name, NUMBER),
                partial(cells.measured, condition_list=name, metric=metric),
            )
            for metric in headline_metrics()
        ]
    columns += [
        (Column("training images seen", kind=NUMBER), cells.images),
        (Column("parameters", kind=NUMBER), partial(cells.in_summary, name="parameters")),
        (Column("forward", "FLOPs", NUMBER), partial(cells.in_summary, name="flops_forward")),
        (Column("training", "FLOPs", NUMBER), cells.flops_training),
        (Column("wall time", kind=NUMBER), cells.wall_time),
        (Column("machine"), cells.machine),
        (Column("settings that differ", kind=SENTENCES), cells.differing),
        (Column("evaluator", kind=SENTENCES), cells.evaluator),
    ]
    by_column = [(column, [cell(group) for group in groups]) for column, cell in columns]
    shown = [
        (column, figures)
        for column, figures in by_column
        if column.group not in TEST_LISTS or any(cell != Cell() for cell in figures)
    ]
    return Table(
        [column for column, _ in shown],
        [list(row) for row in zip(*(figures for _, figures in shown), strict=True)],
        ["finished" if group.counted else group.first.state for group in groups],
    )


def holdout(groups: Sequence[RunGroup]) -> Table:
    """Compare the scores of held-out and seen label sets, for the groups that have them."""
    columns, rows = [Column("run")], []
    columns += [
        Column(METRICS[metric].title, cells.list_title(name), NUMBER)
        for name in (HELD_OUT, SEEN)
        for metric in headline_metrics()
    ]
    for group in groups:
        if group.measured(HELD_OUT, "accuracy") is not None:
            measured = [
                cells.measured(group, name, metric)
                for name in (HELD_OUT, SEEN)
                for metric in headline_metrics()
            ]
            rows.append([text(group.label, cells.seeds(group)), *measured])
    return Table(columns, rows, ["finished"] * len(rows))


def factors(groups: Sequence[RunGroup]) -> Table:
    """List the factors of each group and list, the mean over its runs; only of evaluated runs."""
    columns = [Column("run"), Column("list")]
    columns += [Column(title, kind=NUMBER) for title in FACTOR_TITLES.values()]
    rows = [
        [
            text(group.label),
            text(name),
            *(_factor(group.scores, name, key) for key in FACTOR_TITLES),
        ]
        for group in groups
        for name in dict.fromkeys(name for scores in group.scores for name in scores.factors)
    ]
    return Table(columns, rows, ["finished"] * len(rows))


def _factor(scores: Sequence[Scores], condition_list: str, factor: str) -> Cell:
    values = [of_run.factors.get(condition_list, {}).get(factor) for of_run in scores]
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return Cell()
    found = summarize(known)
    cell = figure(found.mean, FACTOR_FORMATS[factor])
    if found.std is None:
        return cell
    return Cell(cell.text, deviation=f"± {found.std:.3f}", sort=cell.sort)


def headline_metrics() -> list[str]:
    """Return the names of the metrics that comparisons show."""
    return [name for name, metric in METRICS.items() if metric.headline]


def every_run(runs: Sequence[Run]) -> Table:
    """List the scores of every run, one source of scores per row."""
    columns = [Column("run"), Column("seed")]
    columns += [
        Column(METRICS[metric].title, name, NUMBER)
        for name in TEST_LISTS
        for metric in headline_metrics()
    ]
    columns += [Column("sampler"), Column("evaluator"), Column("wall time", kind=NUMBER)]
    rows = []
    for run in runs:
        for scores, source in ((run.evaluation, "evaluation"), (run.training, "end of training")):
            if scores is not None:
                rows.append([text(run.path, source), *_cells_of_run(run, scores)])
    return Table(columns, rows, ["finished"] * len(rows))


def _cells_of_run(run: Run, scores: Scores) -> list[Cell]:
    measured = []
    for name in TEST_LISTS:
        for metric in headline_metrics():
            values = scores.values.get(name, {}).get(metric, [])
            note = sampling_seeds(len(values)) if values and metric == "accuracy" else ""
            mean = statistics.fmean(values) if values else None
            measured.append(figure(mean, METRICS[metric].format, note))
    return [
        text(run.seed),
        *measured,
        text(scores.sampled_with),
        text(scores.evaluator),
        cells.duration(cells.seconds_of(run)),
    ]


def not_finished(runs: Sequence[Run]) -> Table:
    """List the runs that failed, were stopped or are still running, with progress and reason."""
    columns = [Column("run"), Column("status"), Column("steps", kind=NUMBER)]
    columns += [Column("of"), Column("last loss", kind=NUMBER)]
    columns += [Column("last accuracy, test", kind=NUMBER), Column("message", kind=SENTENCES)]
    rows, states = [], []
    for run in runs:
        if run.state == "finished":
            continue
        silent = "no process holds its folder" if run.state == "unfinished" else ""
        rows.append(
            [
                text(run.path, " ".join(run.overrides)),
                text(run.state),
                figure(run.steps, ","),
                text(_goal(run)),
                figure(_loss(run), ".4g"),
                figure(latest(run, "score/test/accuracy"), ".4f"),
                text(run.message or silent),
            ]
        )
        states.append(run.state)
    return Table(columns, rows, states)


def _loss(run: Run) -> float | None:
    loss = latest(run, "train/loss")
    return latest(run, "train/loss_generator") if loss is None else loss


def settings(groups: Sequence[RunGroup]) -> Table:
    """List the settings that differ, one per row, with a column for each group."""
    configured = [group for group in groups if group.first.settings]
    names = list(dict.fromkeys(name for group in configured for name in group.differs))
    columns = [Column("setting"), *(Column(group.label) for group in configured)]
    rows = [
        [text(name), *(text(group.differs.get(name, "")) for group in configured)] for name in names
    ]
    return Table(columns, rows, ["finished"] * len(rows))


def latest(run: Run, key: str) -> float | None:
    """Return the last value of a logged metric."""
    return next((row[key] for row in reversed(run.rows) if key in row), None)


def _goal(run: Run) -> str:
    for name, unit in (("max_steps", "steps"), ("max_epochs", "epochs")):
        goal = run.settings.get(f"trainer.{name}", "null")
        if goal not in ("null", "-1"):
            return f"{goal} {unit}"
    return ""
