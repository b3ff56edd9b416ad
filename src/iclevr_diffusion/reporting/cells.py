"""The cells of the comparison: what they show of one group of runs."""

import math
from dataclasses import dataclass

from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.reporting.groups import RunGroup, sampling_seeds
from iclevr_diffusion.reporting.runs import Run

NONE = "–"
MOST_SETTINGS = 4  # in a cell; all are in the table of settings


@dataclass(frozen=True)
class Cell:
    """The content of a cell.

    Attributes:
        text: In normal size.
        note, deviation: Smaller, below the text.
        sort: The value that the column is sorted by; None comes last.
    """

    text: str = NONE
    note: str = ""
    deviation: str = ""
    sort: float | str | None = None


def text(value: str, note: str = "") -> Cell:
    """Make a cell of words."""
    return Cell(value or NONE, note, sort=value or None)


def figure(value: float | None, form: str, note: str = "") -> Cell:
    """Format a number as ``form`` specifies."""
    if value is None:
        return Cell(note=note)
    return Cell(f"{value:{form}}", note, sort=value if math.isfinite(value) else None)


def seeds(group: RunGroup) -> str:
    """Return the training seeds of a group in words."""
    names = [run.seed for run in group.counted if run.seed]
    if not names:
        return ""
    return f"seed{'s' if len(names) > 1 else ''} {', '.join(names)}"


def status(group: RunGroup) -> Cell:
    """Show how many runs have finished, failed, …."""
    states = [run.state for run in group.runs]
    if len(states) == 1:
        return text(states[0])
    parts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    not_counted = states.count("finished") - len(group.counted)
    note = f"{not_counted} not counted" if not_counted else ""
    return Cell(", ".join(parts), note, sort=states[0])


def published(group: RunGroup, condition_list: str) -> Cell:
    """Show the accuracy in the lab report, and whether the run has its settings."""
    value = group.first.published(condition_list)
    report = group.first.settings.get("published.report")
    if not report or value is None:
        return figure(value, ".4f")
    changed = ", other settings" if group.first.changes_the_experiment else ""
    return figure(value, ".4f", f"report {report}{changed}")


def measured(group: RunGroup, condition_list: str, metric: str) -> Cell:
    """Show a metric of a condition list."""
    values = group.measured(condition_list, metric)
    if values is None:
        return Cell(note="not averaged" if group.counted and not group.scores else "")
    form = METRICS[metric].format
    deviation = "" if values.std is None else f"± {values.std:{form}}"
    over = values.over if metric == "accuracy" else ""  # the same for the cells beside it
    return Cell(f"{values.mean:{form}}", over, deviation, values.mean)


def images(group: RunGroup) -> Cell:
    """Show the number of training images seen."""
    return figure(getattr(group.first.summary, "images_seen", None), ",.0f")


def in_summary(group: RunGroup, name: str) -> Cell:
    """Show a number of the summary, such as ``parameters``."""
    return amount(getattr(group.first.summary, name, None))


def flops_training(group: RunGroup) -> Cell:
    """Show the FLOPs of the training."""
    summary = group.first.summary
    if summary is None or summary.flops_per_training_image is None:
        return Cell()
    return amount(summary.flops_per_training_image * summary.images_seen)


def wall_time(group: RunGroup) -> Cell:
    """Show the mean wall time of the training."""
    times = [time for run in group.counted if (time := seconds_of(run)) is not None]
    if not times:
        return Cell()
    return duration(sum(times) / len(times), f"mean of {len(times)}" if len(times) > 1 else "")


def machine(group: RunGroup) -> Cell:
    """Show the devices."""
    summaries = [run.summary for run in group.counted or group.runs if run.summary]
    return text(", ".join(dict.fromkeys(summary.machine.device for summary in summaries)))


def seconds_of(run: Run) -> float | None:
    """Return the seconds of training, in all processes of the run."""
    return None if run.summary is None else run.summary.seconds


def duration(value: float | None, note: str = "") -> Cell:
    """Format seconds: 2 h 13 min."""
    if value is None:
        return Cell()
    whole = round(value)
    hours, minutes = whole // 3600, whole % 3600 // 60
    words = f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
    return Cell(words if whole >= 60 else f"{whole} s", note, sort=value)


def differing(group: RunGroup) -> Cell:
    """Show the settings that differ from other groups, or the overrides."""
    items = [f"{name}={value}" for name, value in group.differs.items()]
    if not items:
        return text(", ".join(group.first.overrides))
    shown = items[: MOST_SETTINGS if len(items) > MOST_SETTINGS + 1 else None]
    rest = len(items) - len(shown)
    return text(", ".join(shown), f"and {rest} more, below" if rest else "")


def evaluator(group: RunGroup) -> Cell:
    """Show the evaluator, and how the images were sampled."""
    if not group.counted:
        return Cell()
    if not group.scores:
        return text("not averaged: measured in different ways", "; ".join(group.evaluators))
    counts = sorted({scores.seeds for scores in group.scores})
    first = group.scores[0]
    how = f"{' or '.join(map(sampling_seeds, counts))} each, {first.sampled_with}"
    lists = f"; lists: {first.lists}" if first.lists else ""  # of other lists only
    return text(first.evaluator or NONE, how + lists)


def amount(value: float | None) -> Cell:
    """Format a number with the prefix of its power of a thousand: 31.0 G."""
    if value is None or not math.isfinite(value):
        return Cell()
    power = max(0, min(6, int(math.log10(value) // 3))) if value >= 1 else 0
    scaled = value / 1000**power
    return Cell(f"{scaled:.{1 if power else 0}f} {' kMGTPE'[power]}".strip(), sort=value)


def list_title(condition_list: str) -> str:
    """Return the name of a condition list as it is shown."""
    return condition_list.replace("_", "-")
