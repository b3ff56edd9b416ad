"""The cells of a report's tables: what they say of one line."""

import math
from dataclasses import dataclass

from iclevr_diffusion.reporting.groups import Line

NONE = "–"
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


def text(value: str, note: str = "") -> Cell:
    return Cell(value or NONE, note, sort=value or None)


def figure(value: float | None, form: str, note: str = "") -> Cell:
    """A number, written as ``form`` says."""
    if value is None:
        return Cell(note=note)
    return Cell(f"{value:{form}}", note, sort=value if math.isfinite(value) else None)


def draws_text(draws: int) -> str:
    return "one draw" if draws == 1 else f"{draws} draws"


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
    return figure(line.first.cost.images, ",.0f")


def forward(line: Line) -> Cell:
    return amount(line.first.cost.flops_forward)


def training(line: Line) -> Cell:
    cost = line.first.cost
    if cost.flops_per_training_image is None or cost.images is None:
        return Cell()
    return amount(cost.flops_per_training_image * cost.images)


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


def amount(value: float | None) -> Cell:
    """A number with the letter of its power of a thousand: 31.0 G."""
    if value is None or not math.isfinite(value):
        return Cell()
    power = max(0, min(6, int(math.log10(value) // 3))) if value >= 1 else 0
    scaled = value / 1000**power
    return Cell(f"{scaled:.{1 if power else 0}f} {' kMGTPE'[power]}".strip(), sort=value)
