"""Curves of all groups on common axes, as SVG in the colors of the page."""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.data.holdout import HELD_OUT, SEEN
from iclevr_diffusion.diffusion.schedule import SCHEDULES, NoiseSchedule, Schedule
from iclevr_diffusion.evaluation.plots import plot_ratio, plot_signal, set_log_scale
from iclevr_diffusion.reporting.cells import list_title
from iclevr_diffusion.reporting.groups import RunGroup
from iclevr_diffusion.reporting.run_files import number
from iclevr_diffusion.reporting.runs import Run

# Legible on white and on black: at least 3:1 against both pages (WCAG 1.4.11).
COLORS = ("#2f7fd1", "#d9630f", "#1d9160", "#c2479b", "#8a66d6", "#a37a00", "#db4a4a", "#6b7f8c")
DASHES = ("", "6 2", "2 2", "8 2 2 2")
MOST = 1e30  # matplotlib's axes overflow beyond
MOST_POINTS = 300  # per curve
INK = "#010203"  # placeholder for the page's text color
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "iclevr-diffusion",  # the same runs give the same page
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
}
SIZE = (5.2, 3.4)  # inches
FRACTION = "data.holdout.fraction"

Points = list[tuple[float, float]]
Scale = Literal["log", "share"]  # of the y axis; a share is in [0, 1]


@dataclass(frozen=True)
class Chart:
    """A plot: its heading, a note, and the SVG."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Key:
    """The look of a group in all charts: color, dashes (SVG's ``stroke-dasharray``), label."""

    color: str
    dashes: str
    label: str


def keys(labels: Iterable[str]) -> list[Key]:
    """Return a look for each label; after 32 labels the looks repeat."""
    return [
        Key(
            COLORS[index % len(COLORS)],
            DASHES[index // len(COLORS) % len(DASHES)],
            label,
        )
        for index, label in enumerate(labels)
    ]


def keys_of_curves(groups: Sequence[RunGroup]) -> list[Key]:
    """Return the looks of the groups that have curves."""
    looks = zip(keys(group.label for group in groups), groups, strict=True)
    return [key for key, group in looks if any(run.rows for run in group.runs)]


def training_charts(groups: Sequence[RunGroup]) -> list[Chart]:
    """Plot losses and accuracies over the number of training images seen."""
    of_predictions = "Losses of different predictions cannot be compared; errors of x₀ can."
    one_seed = "One seed, with the same noise every time."
    wanted: list[tuple[str, str, str, Scale]] = [
        ("train/loss", "training loss", of_predictions, "log"),
        ("val/loss", "validation loss", of_predictions, "log"),
        ("train/loss_generator", "generator's loss", "", "log"),
        ("train/loss_discriminator", "discriminator's loss", "", "log"),
        ("val/x0_error", "validation error of x₀", "", "log"),
        *(
            (f"score/{name}/accuracy", f"accuracy, {name}", one_seed, "share")
            for name in TEST_LISTS
        ),
        *(
            (f"score/{name}/exact_match", f"exact match, {list_title(name)}", one_seed, "share")
            for name in (HELD_OUT, SEEN)
        ),
    ]
    labels = [group.label for group in groups]
    charts: list[Chart] = []
    for key, title, note, scale in wanted:
        curves = [[_metric(run, key) for run in group.runs] for group in groups]
        charts += _chart(title, note, labels, curves, "training images seen", scale)
    return charts


def denoising_charts(groups: Sequence[RunGroup]) -> list[Chart]:
    """Plot the accuracy of the estimate of x₀ over the denoising steps."""
    labels = [group.label for group in groups]
    charts: list[Chart] = []
    for name in TEST_LISTS:
        curves = [[_by_step(run, name) for run in group.counted] for group in groups]
        note = "Of the estimate of x₀ after each step, with the first seed."
        title = f"accuracy by denoising step, {name}"
        charts += _chart(title, note, labels, curves, "% of the steps", "share")
    return charts


def holdout_series(groups: Sequence[RunGroup]) -> dict[str, list[RunGroup]]:
    """Return the groups with a held-out fraction, by their other settings that differ."""
    found: dict[str, list[RunGroup]] = {}
    for group in groups:
        if number(group.first.settings.get(FRACTION)) is not None:
            others = [f"{key}={value}" for key, value in group.differs.items() if key != FRACTION]
            label = f"{group.first.name} ({', '.join(others[:3])})" if others else group.first.name
            found.setdefault(label, []).append(group)
    return found


def holdout_charts(series: Mapping[str, Sequence[RunGroup]]) -> list[Chart]:
    """Plot exact match on held-out and on seen label sets of :func:`holdout_series`."""
    charts: list[Chart] = []
    for name in (HELD_OUT, SEEN):
        curves = [[_by_fraction(groups, name)] for groups in series.values()]
        title = f"exact match over the fraction, {list_title(name)}"
        note = "Mean over the training seeds."
        charts += _chart(title, note, list(series), curves, "held-out fraction", "share")
    return charts


def schedule_charts(schedules: Mapping[str, Schedule]) -> list[Chart]:
    """Plot signal and noise, and their ratio."""
    if not schedules:
        return []
    return [
        Chart("α, and dashed σ", "", _draw(lambda axes: plot_signal(axes, schedules))),
        Chart("signal-to-noise ratio", "", _draw(lambda axes: plot_ratio(axes, schedules))),
    ]


def distinct_schedules(groups: Sequence[RunGroup]) -> dict[str, Schedule]:
    """Return the noise schedules of the configs, by what describes them.

    A config names its class, which is looked up among the registered ones and never imported.
    """
    found: dict[str, Schedule] = {}
    for group in groups:
        config = group.first.config.get("schedule")
        if not isinstance(config, dict):
            continue
        settings = dict(config)
        class_name = str(settings.pop("_target_", NoiseSchedule.__name__)).rpartition(".")[2]
        try:
            schedule = SCHEDULES.find(class_name)(**settings)
        except (TypeError, ValueError):
            continue
        found.setdefault(str(schedule), schedule)
    return found


def _metric(run: Run, key: str) -> Points:
    points = [((row["step"] + 1) * run.images_per_step, row.get(key, math.nan)) for row in run.rows]
    return [(x, y) for x, y in points if abs(x) < MOST and abs(y) < MOST]  # NaN is dropped, too


def _by_step(run: Run, name: str) -> Points:
    values = run.evaluation.by_step.get(name, []) if run.evaluation else []
    return [(100 * (step + 1) / len(values), value) for step, value in enumerate(values)]


def _by_fraction(groups: Sequence[RunGroup], condition_list: str) -> Points:
    points = []
    for group in groups:
        fraction = number(group.first.settings.get(FRACTION))
        measured = group.measured(condition_list, "exact_match")
        if fraction is not None and measured is not None:
            points.append((fraction, measured.mean))
    return sorted(points)


def _chart(
    title: str,
    note: str,
    labels: Sequence[str],
    curves: Sequence[Sequence[Points]],
    xlabel: str,
    scale: Scale,
) -> list[Chart]:
    """Plot the curves of each label in its look; [] if there is none."""
    shown = [
        (key, points) for key, runs in zip(keys(labels), curves, strict=True) for points in runs
    ]
    shown = [(key, _thinned(points)) for key, points in shown if points]
    if not shown:
        return []

    def draw(axes: Axes) -> None:
        for key, points in shown:
            dashes = (0, [float(part) / 1.4 for part in key.dashes.split()]) if key.dashes else "-"
            marker = "o" if len(points) == 1 else "." if len(points) < 30 else None
            axes.plot(*zip(*points, strict=True), color=key.color, ls=dashes, marker=marker, lw=1.4)
        if scale == "log" and all(value > 0 for _, points in shown for _, value in points):
            set_log_scale(axes)
        if scale == "share":
            axes.set_ylim(0, 1.02)
        axes.set_xlabel(xlabel)
        axes.grid(alpha=0.2)

    return [Chart(title, note, _draw(draw))]


def _thinned(points: Points) -> Points:
    """Return at most MOST_POINTS points, each the mean of several neighbors."""
    width = -(-len(points) // MOST_POINTS)

    def means() -> Iterator[tuple[float, float]]:
        for start in range(0, len(points), width):
            part = points[start : start + width]
            yield (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))

    return list(means())


def _draw(draw: Callable[[Axes], None]) -> str:
    """Render a plot as an SVG element in the color of the text around it.

    The page includes it without escaping, so it must not contain text of a run: labels are in the
    legend.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        draw(axes)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    svg = file.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
