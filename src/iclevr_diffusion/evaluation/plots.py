"""Plots: noise schedules, training curves, confusion, accuracy by step and over calls."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, SHAPES, Vocabulary
from iclevr_diffusion.diffusion.schedule import Schedule

LEGEND_WIDTH = 90  # characters of a line


def schedule_plot(schedules: Mapping[str, Schedule]) -> Figure:
    """α_t and σ_t, and the signal-to-noise ratio, over the timesteps."""
    figure = _two_panels()
    signal, ratio = figure.subplots(1, 2)
    plot_signal(signal, schedules)
    plot_ratio(ratio, schedules)
    signal.set_title("signal and noise")
    ratio.set_title("signal-to-noise ratio α² / σ²")
    signal.legend(frameon=False, fontsize=8, loc="center left")
    ratio.legend(frameon=False)
    return figure


def _two_panels() -> Figure:
    """Create a figure for two axes; fixed margins take half the time of computed ones."""
    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.07, right=0.985, bottom=0.13, top=0.85, wspace=0.16)
    return figure


def plot_signal(axes: Axes, schedules: Mapping[str, Schedule]) -> None:
    """α_t, and dashed σ_t."""
    for index, (name, schedule) in enumerate(schedules.items()):
        axes.plot(schedule.alphas.cpu(), color=f"C{index}", label=f"{name} α")
        axes.plot(schedule.sigmas.cpu(), color=f"C{index}", ls="--", label=f"{name} σ")
    axes.set_xlabel("timestep")
    axes.grid(alpha=0.3)


def plot_ratio(axes: Axes, schedules: Mapping[str, Schedule]) -> None:
    """Plot the signal-to-noise ratio α_t² / σ_t²."""
    for index, (name, schedule) in enumerate(schedules.items()):
        axes.semilogy(schedule.noise_to_signal().cpu() ** -2, color=f"C{index}", label=name)
    axes.set_xlabel("timestep")
    axes.grid(alpha=0.3)


def curves_plot(rows: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """Plot losses over steps, and beside them accuracies, or without any the errors of x_0.

    Args:
        rows: The rows of ``metrics.csv``: ``step`` and any of the logged metrics.
        title: Above the plot; it names the evaluator.
    """
    figure = _two_panels()
    figure.suptitle(title, fontsize=8)
    left, right = figure.subplots(1, 2, sharex=True)
    accuracies = sorted({key for row in rows for key in row if key.endswith("/accuracy")})
    for key in ("train/loss", "val/loss"):
        _plot_metric(left, rows, key)
    for key in accuracies or ["val/x0_error"]:
        _plot_metric(right, rows, key)
    left.set_title("loss")
    if left.lines:
        set_log_scale(left)
    right.set_title("accuracy" if accuracies else "error of x₀")
    if accuracies:
        right.set_ylim(0, 1.02)
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def set_log_scale(axes: Axes) -> None:
    """Make the y-axis of finished lines logarithmic, with plain numbers beside it."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 5 * low:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    elif high < 1000 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plot_metric(axes: Axes, rows: Sequence[Mapping[str, float]], key: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=key, marker="." if len(points) < 30 else None)


def confusion_plot(
    total: Tensor, weight: Tensor, title: str, vocabulary: Vocabulary = ICLEVR_LABELS
) -> Figure:
    """Plot what was generated for each label, and with i-CLEVR's for each shape and color.

    Args:
        total: (L, L + 1), how often each label was shown for each requested one; see
            :class:`iclevr_diffusion.evaluation.breakdowns.Confusion`.
        weight: (L, L + 1), how often each label was requested.
        title: Above the plot; it names the evaluator.
        vocabulary: The labels.
    """
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    note = "share of the requests for that row; on the diagonal it was generated as requested"
    figure.suptitle(f"{title}\n{note}", fontsize=10)
    whole = total / weight.clamp(min=1)
    if vocabulary != ICLEVR_LABELS:
        _matrix(figure.subplots(), whole, vocabulary.names, "object", numbers=False)
        return figure
    layout = figure.add_gridspec(2, 2, width_ratios=(2.1, 1))
    _matrix(figure.add_subplot(layout[:, 0]), whole, vocabulary.names, "object", numbers=False)
    # The labels are ordered shape by shape: label = shape * 8 + color.
    labels = (len(SHAPES), len(COLORS))
    parts, nothing, requested = total[:, :-1].view(*labels, *labels), total[:, -1], weight[:, 0]
    for row, names, dims, axis in ((0, SHAPES, (1, 3), 1), (1, COLORS, (0, 2), 0)):
        shares = torch.cat((parts.sum(dims), nothing.view(labels).sum(axis)[:, None]), 1)
        shares = shares / requested.view(labels).sum(axis)[:, None].clamp(min=1)
        what = "shape" if names is SHAPES else "color"
        _matrix(figure.add_subplot(layout[row, 1]), shares, names, what, numbers=True)
    return figure


def _matrix(axes: Axes, values: Tensor, names: Sequence[str], what: str, numbers: bool) -> None:
    # The square root makes rare confusions visible.
    axes.imshow(values.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names) + 1), [*names, "nothing"], rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel=f"{what} shown", ylabel=f"{what} requested")
    for (row, column), value in zip(
        torch.cartesian_prod(*map(torch.arange, values.shape)).tolist(),
        values.flatten().tolist(),
        strict=True,
    ):
        if value >= (0.005 if numbers else 0.095):
            axes.text(
                column,
                row,
                f"{value:.2f}".lstrip("0") if numbers else f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8 if numbers else 6,
                color="white" if value > 0.3 else "black",
            )


def accuracy_by_step_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str
) -> Figure:
    """Plot the accuracy of the estimate of x_0 and of x_t after each step, for each list."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, both) in enumerate(curves.items()):
        for values, style, what in zip(both, ("-", "--"), ("estimate of x₀", "x_t"), strict=True):
            steps = range(1, len(values) + 1)
            marker = "." if len(values) < 60 else None
            axes.plot(
                steps, values, style, color=f"C{index}", marker=marker, label=f"{name}, {what}"
            )
    axes.set(xlabel="denoising step, first seed", ylabel="accuracy", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


Curves = Mapping[str, Sequence[tuple[float, float, float, float]]]


def accuracy_plot(curves: Curves, title: str, xlabel: str, xscale: str) -> Figure:
    """Plot accuracy over a setting of the sampling.

    Args:
        curves: By name, points (x, mean, low, high); low and high are the ends of the 95 %
            confidence interval, or NaN.
        title: Names the evaluator.
        xlabel, xscale: Label and scale of the x axis.
    """
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        x, mean, low, high = map(np.array, zip(*sorted(points), strict=True))
        label = textwrap.fill(name, LEGEND_WIDTH)
        axes.errorbar(x, mean, yerr=(mean - low, high - mean), marker="o", capsize=3, label=label)
    axes.set(xlabel=xlabel, ylabel="accuracy", xscale=xscale)
    ticks = sorted({point[0] for points in curves.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return figure
