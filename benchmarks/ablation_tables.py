"""The tables and the plot of an ablation, from the folders of its runs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common import table
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.utils.files import SUMMARY, write_text
from iclevr_diffusion.utils.statistics import Statistics, summarize
from iclevr_diffusion.utils.typed_json import read_dataclass

X0_ERRORS = "x0_errors.json"
LISTS = ("test", "new_test")
METRICS = ("accuracy", "exact_match")
BANDS = ((0.0, 0.1), (0.1, 1.0), (1.0, 10.0))  # of the noise-to-signal ratio

Figures = Mapping[str, float]


def write(
    out: Path,
    runs: Mapping[str, Sequence[Path | None]],
    searches: Mapping[str, Mapping[float, float]],
) -> None:
    """Write ``ablation.json``, ``ablation.md`` and, where errors of x_0 are known, ``x0.png``.

    Args:
        out: the folder to write to.
        runs: by cell, the folder of the run of each seed; None if there is none.
        searches: by cell, the error of x_0 of each learning-rate multiplier.
    """
    cells = {
        name: {
            seed: run_figures(run)
            for seed, run in enumerate(folders)
            if run is not None and (run / "evaluation" / EVALUATION).is_file()
        }
        for name, folders in runs.items()
    }
    cells = {name: seeds for name, seeds in cells.items() if seeds}
    if not cells:
        return
    scores = {name: summary(list(seeds.values())) for name, seeds in cells.items()}
    differences = {
        f"{one} - {other}": paired(cells[one], cells[other])
        for one, other in pairs(list(cells))
        if len(cells[one].keys() & cells[other].keys()) > 1
    }
    content = {
        "about": about(runs),
        "searches": searches,
        "cells": {name: plain(figures) for name, figures in scores.items()},
        "paired_differences": {name: plain(figures) for name, figures in differences.items()},
    }
    write_text(out / "ablation.json", json.dumps(content, indent=2) + "\n")
    text = markdown(scores, differences, searches)
    write_text(out / "ablation.md", text)
    print(text)
    curves = {name: x0_curve(runs[name]) for name in cells}
    if any(curves.values()):
        save_image(plot({name: curve for name, curve in curves.items() if curve}), out / "x0.png")


def run_figures(run: Path) -> dict[str, float]:
    """Return the figures of one run: means over the condition lists, and errors by noise level."""
    evaluation = read_dataclass(Evaluation, run / "evaluation" / EVALUATION)
    (setting,) = evaluation.settings
    lists = [setting.lists[name] for name in LISTS]
    figures = {}
    for name in METRICS:
        figures[name] = sum(one.metrics[name].mean for one in lists) / len(lists)
        second = [one.second_evaluator[name].mean for one in lists if one.second_evaluator]
        if second:
            figures[f"second_{name}"] = sum(second) / len(second)
    if setting.fidelity is not None:
        figures |= {name: figure.value for name, figure in setting.fidelity.images.items()}
    if (run / X0_ERRORS).is_file():
        errors = json.loads((run / X0_ERRORS).read_text("utf-8"))
        for low, high in BANDS:
            inside = [entry["error"] for entry in errors if low <= entry["ratio"] < high]
            figures[f"x0_error_{low:g}_{high:g}"] = sum(inside) / len(inside)
    return figures


def summary(seeds: Sequence[Figures]) -> dict[str, Statistics]:
    """Summarize each figure over the seeds that have it."""
    names = dict.fromkeys(name for figures in seeds for name in figures)
    return {
        name: summarize([figures[name] for figures in seeds if name in figures]) for name in names
    }


def paired(one: Mapping[int, Figures], other: Mapping[int, Figures]) -> dict[str, Statistics]:
    """Summarize the differences ``one - other`` of the seeds that both have."""
    both = sorted(one.keys() & other.keys())
    return summary(
        [
            {name: one[seed][name] - other[seed][name] for name in one[seed] if name in other[seed]}
            for seed in both
        ]
    )


def pairs(cells: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that differ in the schedule alone, then in the prediction alone."""

    def parts(name: str) -> tuple[str, str]:
        schedule, _, prediction = name.partition("_")
        return schedule, prediction

    def matching(same: Callable[[str], str], one: str, other: str) -> bool:
        return "_" in one and "_" in other and same(one) == same(other)

    every = [(one, other) for i, one in enumerate(cells) for other in cells[i + 1 :]]
    schedules = [pair for pair in every if matching(lambda name: parts(name)[1], *pair)]
    predictions = [pair for pair in every if matching(lambda name: parts(name)[0], *pair)]
    flow = [("flow", name) for name in cells if name != "flow"] if "flow" in cells else []
    return [*schedules, *predictions, *flow]


def about(runs: Mapping[str, Sequence[Path | None]]) -> dict[str, Any]:
    """Return what the trainings of each cell have in common, from the first that finished."""
    result = {}
    for name, folders in runs.items():
        summaries = [run / SUMMARY for run in folders if run is not None]
        for path in summaries:
            if path.is_file():
                content = json.loads(path.read_text("utf-8"))
                keys = ("data", "steps", "images_seen", "seconds", "parameters", "evaluator")
                result[name] = {key: content[key] for key in (*keys, "machine", "versions")}
                break
    return result


def plain(figures: Mapping[str, Statistics]) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def markdown(
    scores: Mapping[str, Mapping[str, Statistics]],
    differences: Mapping[str, Mapping[str, Statistics]],
    searches: Mapping[str, Mapping[float, float]],
) -> str:
    """Format the tables of scores, paired differences and learning-rate searches."""
    parts = [table([{"cell": name} | shown(figures) for name, figures in scores.items()])]
    if differences:
        rows = [{"difference": name} | shown(figures) for name, figures in differences.items()]
        parts.append("Paired differences:\n\n" + table(rows))
    if searches:
        multipliers = sorted({m for tried in searches.values() for m in tried})
        rows = [
            {"cell": name}
            | {f"× {m:g}": f"{1000 * tried[m]:.3f}" if m in tried else "–" for m in multipliers}
            for name, tried in searches.items()
            if tried
        ]
        if rows:
            heading = "Learning rates, by the geometric mean of the errors of x_0 × 1000:\n\n"
            parts.append(heading + table(rows))
    return "\n\n".join(parts) + "\n"


def shown(figures: Mapping[str, Statistics]) -> dict[str, str]:
    """Format figures as mean and 95 % interval; errors of x_0 times 1000."""
    result = {}
    for name, figure in figures.items():
        factor = 1000 if name.startswith("x0_error") else 1
        text = f"{factor * figure.mean:.3f}"
        if figure.interval is not None:
            low, high = (factor * end for end in figure.interval)
            text += f" [{low:.3f}, {high:.3f}]"
        result[name + (" × 1000" if factor != 1 else "")] = text
    return result


def x0_curve(runs: Sequence[Path | None]) -> list[tuple[float, float]]:
    """Return noise-to-signal ratios with the error of x_0, averaged over the seeds."""
    files = [run / X0_ERRORS for run in runs if run is not None]
    tables = [json.loads(path.read_text("utf-8")) for path in files if path.is_file()]
    return [
        (entries[0]["ratio"], sum(entry["error"] for entry in entries) / len(entries))
        for entries in zip(*tables, strict=True)
    ]


def plot(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Plot the error of x_0 over the noise level, relative to the least of all cells."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    least = [min(error for _, error in entries) for entries in zip(*curves.values(), strict=True)]
    for name, curve in curves.items():
        relative = [error / low for (_, error), low in zip(curve, least, strict=True)]
        style = "--" if name.startswith("linear") else "-"
        axes.plot([ratio for ratio, _ in curve], relative, style, marker=".", label=name)
    axes.set(xscale="log", yscale="log", xlabel="noise-to-signal ratio σ / α")
    axes.set_ylabel("error of x₀, relative to the best cell")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
