"""The tables of a report, as values: the page and the Markdown file show the same cells."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from iclevr_diffusion.comparison.lines import Line
from iclevr_diffusion.comparison.runs import Run
from iclevr_diffusion.comparison.scores import Scores

NONE = "–"
NUMBER, SENTENCES = "number", "sentences"
LISTS = ("test", "new_test")
MOST_SETTINGS = 4  # in a cell; all are in the table of settings


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    text, spread, note: spread and note are smaller, below the text.
    sort: what the column is sorted by; None comes last.
    """

    text: str = NONE
    note: str = ""
    spread: str = ""
    sort: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column: its heading, the one above that it shares with its neighbours, what it holds."""

    title: str
    group: str = ""
    kind: str = "words"  # or number, or sentences, which take more room

    @property
    def number(self) -> bool:
        return self.kind == "number"


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
        (Column("run"), lambda line: text(line.label, seeds_text(line))),
        (Column("state"), state_of_line),
    ]
    for name in LISTS:
        columns += [
            (Column("published", name, kind=NUMBER), _of(published, name)),
            (Column("accuracy", name, kind=NUMBER), _of(measured, name, "accuracy")),
            (Column("exact set", name, kind=NUMBER), _of(measured, name, "exact_set")),
            (Column("extra objects", name, kind=NUMBER), _of(measured, name, "extra")),
        ]
    columns += [
        (Column("images trained on", kind=NUMBER), images),
        (Column("parameters", kind=NUMBER), lambda line: amount(line.first.cost.parameters)),
        (Column("forward", "FLOPs", kind=NUMBER), forward),
        (Column("training", "FLOPs", kind=NUMBER), training),
        (Column("wall time", kind=NUMBER), wall_time),
        (Column("machine"), machine),
        (Column("settings that differ", kind=SENTENCES), differing),
        (Column("read by", kind=SENTENCES), read_by),
    ]
    return Table(
        [column for column, _ in columns],
        [[cell(line) for _, cell in columns] for line in lines],
        ["finished" if line.counted else line.first.state for line in lines],
    )


def every_run(runs: Sequence[Run]) -> Table:
    """A row for each run that has scores: what each seed reached, and what it was measured with."""
    columns = [Column("run"), Column("seed", kind=NUMBER)]
    columns += [
        Column(title, name, kind=NUMBER)
        for name in LISTS
        for title in ("accuracy", "exact set", "extra objects")
    ]
    columns += [Column("drawn by"), Column("read by"), Column("wall time", kind=NUMBER)]
    rows = []
    for run in runs:
        for scores in (run.evaluation, run.training):
            if scores is not None:
                source = "evaluation" if scores is run.evaluation else "end of training"
                rows.append(
                    [
                        text(run.place, source),
                        Cell(run.seed or NONE, sort=_as_number(run.seed)),
                        *_score_cells(scores),
                        text(scores.drawn),
                        text(scores.evaluator or NONE),
                        seconds(run.cost.seconds, run.cost.last_process),
                    ]
                )
    return Table(columns, rows, ["finished"] * len(rows))


def not_finished(runs: Sequence[Run]) -> Table:
    """A row for each run that failed, was stopped, or still runs: how far it came, and why."""
    columns = [Column("run"), Column("state"), Column("steps", kind=NUMBER)]
    columns += [Column("of", kind=NUMBER), Column("last loss", kind=NUMBER)]
    columns += [Column("last accuracy, test", kind=NUMBER), Column("what it said", kind=SENTENCES)]
    rows, states = [], []
    for run in runs:
        if run.state == "finished":
            continue
        loss = latest(run, "train/loss")
        accuracy = latest(run, "score/test/accuracy")
        said = run.message or ("no process holds its folder" if run.state == "unfinished" else NONE)
        rows.append(
            [
                text(run.place, " ".join(run.overrides)),
                text(run.state),
                Cell(f"{run.steps:,}", sort=run.steps),
                text(_goal(run)),
                Cell(NONE if loss is None else f"{loss:.4g}", sort=_finite(loss)),
                Cell(NONE if accuracy is None else f"{accuracy:.4f}", sort=_finite(accuracy)),
                text(said),
            ]
        )
        states.append(run.state)
    return Table(columns, rows, states)


def settings(lines: Sequence[Line]) -> Table:
    """A row for each setting that differs, a column for each line."""
    configured = [line for line in lines if line.first.settings]
    names = list(dict.fromkeys(name for line in configured for name in line.differs))
    columns = [Column("setting"), *(Column(line.label) for line in configured)]
    rows = [
        [text(name), *(text(line.differs.get(name, NONE)) for line in configured)] for name in names
    ]
    return Table(columns, rows, ["finished"] * len(rows))


def text(value: str, note: str = "") -> Cell:
    return Cell(value or NONE, note, sort=value or None)


def seeds_text(line: Line) -> str:
    seeds = [run.seed for run in line.counted if run.seed]
    if not seeds:
        return ""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def state_of_line(line: Line) -> Cell:
    states = [run.state for run in line.runs]
    if len(states) == 1:
        return text(states[0])
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    again = states.count("finished") - len(line.counted)
    return Cell(", ".join(parts), f"{again} not counted" if again else "", sort=states[0])


def published(line: Line, name: str) -> Cell:
    figures = line.first.published
    if figures is None or name not in figures.accuracy:
        return Cell()
    value = figures.accuracy[name]
    return Cell(f"{value:.4f}", f"report {figures.report}" if figures.report else "", sort=value)


def measured(line: Line, name: str, measure: str) -> Cell:
    figure = line.measured(name, measure)
    if figure is None:
        return Cell(note="not averaged" if line.counted and not line.scores else "")
    spread = "" if figure.sd is None else f"± {figure.sd:.4f}"
    over = figure.over if measure == "accuracy" else ""  # the same for the cells beside it
    return Cell(f"{figure.mean:.4f}", over, spread, figure.mean)


def images(line: Line) -> Cell:
    value = line.first.cost.images
    return Cell() if value is None else Cell(f"{value:,.0f}", sort=value)


def forward(line: Line) -> Cell:
    return amount(line.first.cost.flops_forward)


def training(line: Line) -> Cell:
    """A step backward takes twice what the step forward takes: three forward passes an image."""
    cost = line.first.cost
    if cost.flops_forward is None or cost.images is None:
        return Cell()
    return amount(3 * cost.flops_forward * cost.images)


def wall_time(line: Line) -> Cell:
    runs = [run for run in line.counted if run.cost.seconds is not None]
    times = [run.cost.seconds for run in runs if run.cost.seconds is not None]
    if not times:
        return Cell()
    cell = seconds(sum(times) / len(times), any(run.cost.last_process for run in runs))
    mean = f"mean of {len(times)}" if len(times) > 1 else ""
    return Cell(cell.text, "; ".join(filter(None, (mean, cell.note))), sort=cell.sort)


def machine(line: Line) -> Cell:
    runs = line.counted or line.runs
    return text(", ".join(dict.fromkeys(run.cost.device for run in runs if run.cost.device)))


def seconds(value: float | None, last_process: bool) -> Cell:
    if value is None:
        return Cell()
    whole = round(value)
    hours, minutes = whole // 3600, whole % 3600 // 60
    words = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
    return Cell(
        words if whole >= 60 else f"{whole} s",
        "last process only" if last_process else "",
        sort=value,
    )


def differing(line: Line) -> Cell:
    items = [f"{name}={value}" for name, value in line.differs.items()]
    if not items:
        return text(", ".join(line.first.overrides))
    shown = items[: MOST_SETTINGS if len(items) > MOST_SETTINGS + 1 else None]
    rest = len(items) - len(shown)
    return text(", ".join(shown), f"and {rest} more, below" if rest else "")


def read_by(line: Line) -> Cell:
    if not line.counted:
        return Cell()
    if not line.scores:
        return text("not averaged: read or drawn in different ways", "; ".join(line.evaluators))
    draws = sorted({scores.draws for scores in line.scores})
    count = " or ".join(map(str, draws))
    first = line.scores[0]
    how = (
        f"{count} draw{'s' if draws != [1] else ''} each, {first.drawn}; lists: {first.conditions}"
    )
    return text(first.evaluator or NONE, how)


def latest(run: Run, key: str) -> float | None:
    return next((row[key] for row in reversed(run.rows) if key in row), None)


def amount(value: float | None) -> Cell:
    """A number with the letter of its power of a thousand: 31.0 G."""
    if value is None:
        return Cell()
    power = max(0, min(6, int(math.log10(value) // 3))) if value >= 1 else 0
    scaled = value / 1000**power
    return Cell(f"{scaled:.{1 if power else 0}f} {' kMGTPE'[power]}".strip(), sort=value)


def _of(cell: Callable[..., Cell], *arguments: str) -> Callable[[Line], Cell]:
    return lambda line: cell(line, *arguments)


def _score_cells(scores: Scores) -> list[Cell]:
    cells = []
    for name in LISTS:
        for measure in ("accuracy", "exact_set", "extra"):
            values = scores.values.get(name, {}).get(measure, [])
            if not values:
                cells.append(Cell())
                continue
            mean = sum(values) / len(values)
            note = "one draw" if len(values) == 1 else f"{len(values)} draws"
            cells.append(Cell(f"{mean:.4f}", note if measure == "accuracy" else "", sort=mean))
    return cells


def _goal(run: Run) -> str:
    parts = {"max_steps": "steps", "max_epochs": "epochs"}
    for name, unit in parts.items():
        goal = run.settings.get(f"trainer.{name}", "null")
        if goal not in ("null", "-1"):
            return f"{goal} {unit}"
    return ""


def _as_number(value: str) -> float | None:
    try:
        return _finite(float(value))
    except ValueError:
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
