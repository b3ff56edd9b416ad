"""The tables of a report, as values: the page and the Markdown file show the same cells."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclevr_diffusion.reporting import cells
from iclevr_diffusion.reporting.cells import Cell, figure, text
from iclevr_diffusion.reporting.groups import Line
from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.reporting.scores import Scores

NUMBER, SENTENCES = "number", "sentences"
LISTS = ("test", "new_test")


@dataclass(frozen=True)
class Column:
    """A column: its heading, the one above that it shares with its neighbours, what it holds."""

    title: str
    group: str = ""
    kind: str = "words"  # or a NUMBER, or SENTENCES, which take more room


@dataclass(frozen=True)
class Table:
    """Rows of cells, as many in a row as there are columns, and a state for each row."""

    columns: list[Column]
    rows: list[list[Cell]]
    states: list[str]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The upper headings, and how many columns each spans; none where no column has one."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if column.group and found and found[-1][0] == column.group:
                found[-1] = column.group, found[-1][1] + 1
            else:
                found.append((column.group, 1))
        return found if any(group for group, _ in found) else []


def comparison(lines: Sequence[Line]) -> Table:
    """A row for each line: ours beside what was published, its cost, and how it was measured."""
    columns: list[tuple[Column, Callable[[Line], Cell]]] = [
        (Column("run"), lambda line: text(line.label, cells.seeds_text(line))),
        (Column("state"), cells.state_of_line),
    ]
    for name in LISTS:
        columns += [
            (Column("published", name, kind=NUMBER), _of(cells.published, name)),
            (Column("accuracy", name, kind=NUMBER), _of(cells.measured, name, "accuracy")),
            (Column("exact match", name, kind=NUMBER), _of(cells.measured, name, "exact_match")),
            (Column("extra objects", name, kind=NUMBER), _of(cells.measured, name, "extra")),
        ]
    columns += [
        (Column("images trained on", kind=NUMBER), cells.images),
        (Column("parameters", kind=NUMBER), lambda line: cells.amount(line.first.cost.parameters)),
        (Column("forward", "FLOPs", kind=NUMBER), cells.forward),
        (Column("training", "FLOPs", kind=NUMBER), cells.training),
        (Column("wall time", kind=NUMBER), cells.wall_time),
        (Column("machine"), cells.machine),
        (Column("settings that differ", kind=SENTENCES), cells.differing),
        (Column("read by", kind=SENTENCES), cells.read_by),
    ]
    return Table(
        [column for column, _ in columns],
        [[cell(line) for _, cell in columns] for line in lines],
        ["finished" if line.counted else line.first.state for line in lines],
    )


def every_run(runs: Sequence[Run]) -> Table:
    """A row for each run that has scores: what each seed reached, and what it was measured with."""
    columns = [Column("run"), Column("seed")]
    columns += [
        Column(title, name, kind=NUMBER)
        for name in LISTS
        for title in ("accuracy", "exact match", "extra objects")
    ]
    columns += [Column("drawn by"), Column("read by"), Column("wall time", kind=NUMBER)]
    rows = []
    for run in runs:
        for scores, source in ((run.evaluation, "evaluation"), (run.training, "end of training")):
            if scores is not None:
                rows.append([text(run.place, source), *_cells_of_run(run, scores)])
    return Table(columns, rows, ["finished"] * len(rows))


def _cells_of_run(run: Run, scores: Scores) -> list[Cell]:
    measured = []
    for name in LISTS:
        for measure in ("accuracy", "exact_match", "extra"):
            values = scores.values.get(name, {}).get(measure, [])
            note = cells.draws_text(len(values)) if values and measure == "accuracy" else ""
            measured.append(figure(statistics.fmean(values) if values else None, ".4f", note))
    return [
        text(run.seed),
        *measured,
        text(scores.drawn),
        text(scores.evaluator),
        cells.seconds(run.cost.seconds, run.cost.last_process),
    ]


def not_finished(runs: Sequence[Run]) -> Table:
    """A row for each run that failed, was stopped, or still runs: how far it came, and why."""
    columns = [Column("run"), Column("state"), Column("steps", kind=NUMBER)]
    columns += [Column("of"), Column("last loss", kind=NUMBER)]
    columns += [Column("last accuracy, test", kind=NUMBER), Column("what it said", kind=SENTENCES)]
    rows, states = [], []
    for run in runs:
        if run.state == "finished":
            continue
        silent = "no process holds its folder" if run.state == "unfinished" else ""
        rows.append(
            [
                text(run.place, " ".join(run.overrides)),
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


def settings(lines: Sequence[Line]) -> Table:
    """A row for each setting that differs, a column for each line."""
    configured = [line for line in lines if line.first.settings]
    names = list(dict.fromkeys(name for line in configured for name in line.differs))
    columns = [Column("setting"), *(Column(line.label) for line in configured)]
    rows = [
        [text(name), *(text(line.differs.get(name, "")) for line in configured)] for name in names
    ]
    return Table(columns, rows, ["finished"] * len(rows))


def _of(cell: Callable[..., Cell], *arguments: str) -> Callable[[Line], Cell]:
    return lambda line: cell(line, *arguments)


def latest(run: Run, key: str) -> float | None:
    """The last value of a metric."""
    return next((row[key] for row in reversed(run.rows) if key in row), None)


def _goal(run: Run) -> str:
    parts = {"max_steps": "steps", "max_epochs": "epochs"}
    for name, unit in parts.items():
        goal = run.settings.get(f"trainer.{name}", "null")
        if goal not in ("null", "-1"):
            return f"{goal} {unit}"
    return ""
