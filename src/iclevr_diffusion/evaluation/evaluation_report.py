"""What an evaluation leaves: figures, a Markdown table, and images; each names its evaluator."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.evaluation.distances import DISTANCES
from iclevr_diffusion.evaluation.image_grid import LEGEND, Strip, caption, grid, save_image
from iclevr_diffusion.evaluation.metric_collection import SECOND_EVALUATOR_METRICS
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.evaluation.plots import (
    Curves,
    accuracy_by_step_plot,
    accuracy_over_calls_plot,
    accuracy_over_guidance_plot,
    confusion_plot,
)
from iclevr_diffusion.evaluation.score import ListScore

GRID_IMAGES = 64
FIDELITY_COLUMNS = {  # of the Markdown table, and the factors of its figures
    **{name: (distance.title, distance.scale) for name, distance in DISTANCES.items()},
    "auc": ("two-sample AUC", 1),
    "sharpness": ("sharpness ratio", 1),
    "grain": ("grain ratio", 1),
}


def setting_figures(pipeline: Pipeline, scores: Mapping[str, ListScore]) -> dict[str, Any]:
    return {
        **pipeline.description(),
        "lists": {
            name: {
                "conditions": len(score.conditions),
                "seconds_per_image": score.seconds and round(score.seconds, 5),
                **score.metrics(),
                "second_evaluator": score.second_metrics(),
                "distances": score.distances,
                "by_count": score.by_count,
                "by_label": score.by_label,
                "by_step": score.by_step,
                "by_step_x_t": score.by_step_x_t,
            }
            for name, score in scores.items()
        },
    }


def save_images(
    folder: Path, heading: Sequence[str], scores: Mapping[str, ListScore], strip: Strip
) -> list[Path]:
    """The grids, the strip, and the plots of one setting, under a heading of some lines."""
    paths = []
    for name, score in scores.items():
        wrong = torch.tensor(score.wrong())
        captions = [caption(*pair) for pair in zip(score.conditions, score.shown, strict=True)]
        exact = f"{name}: {len(wrong) - int(wrong.sum())} of {len(wrong)} exact with this seed"
        spaced = torch.linspace(0, len(wrong) - 1, min(GRID_IMAGES, len(wrong))).round().int()
        parts = {"": (spaced, f"; {len(spaced)} of them" if len(spaced) < len(wrong) else "")}
        if len(wrong) > GRID_IMAGES and wrong.any():
            some = wrong.nonzero().flatten()[:GRID_IMAGES]
            parts["_wrong"] = some, f"; {len(some)} of the others"
        for suffix, (chosen, which) in parts.items():
            image = grid(
                score.images[chosen],
                captions=[captions[index] for index in chosen],
                title=[*heading, exact + which, LEGEND],
                framed=wrong[chosen].tolist(),
            )
            paths.append(save_image(image, folder / f"grid_{name}{suffix}.png"))
    metrics = [score.confusion for score in scores.values()]
    total = torch.stack([metric.total for metric in metrics]).sum(0)
    weight = torch.stack([metric.weight for metric in metrics]).sum(0)
    plot = confusion_plot(total, weight, "\n".join(heading))
    paths.append(save_image(plot, folder / "confusion.png"))
    by_step = {name: (score.by_step, score.by_step_x_t) for name, score in scores.items()}
    plot = accuracy_by_step_plot(by_step, "\n".join(heading))
    paths.append(save_image(plot, folder / "accuracy_by_step.png"))
    first = next(iter(scores))
    title = [*heading, f"The first images of {first}: x_t, and under it the estimate of x_0."]
    paths.append(save_image(strip.image(title), folder / "strip.png"))
    return paths


def save_accuracy_plot(figures: Mapping[str, Any], folder: Path) -> Path:
    """Plot the accuracy of several settings.

    It stands over the guidance scale where nothing else differs, else over the network calls.
    """
    title = f"{figures['weights']}\nread by {figures['evaluator']}"
    if len({(setting["sampler"], setting["steps"]) for setting in figures["settings"]}) == 1:
        plot = accuracy_over_guidance_plot(_curves(figures, "guidance_scale"), title)
        return save_image(plot, folder / "accuracy_over_guidance.png")
    plot = accuracy_over_calls_plot(_curves(figures, "network_calls"), title)
    return save_image(plot, folder / "accuracy_over_calls.png")


def _curves(figures: Mapping[str, Any], over: str) -> Curves:
    """Points (``over``, mean, low, high) for each list and what else of a setting differs."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for setting in figures["settings"]:
        if over == "guidance_scale":
            how = f"{setting['sampler']} {setting['steps']} steps"
        else:
            how = f"{setting['sampler']}, guidance {setting['guidance_scale']:g}"
        if setting.get("layout"):
            how += f", layout {setting['layout']}"
        for name, score in setting["lists"].items():
            low, high = score["accuracy"]["interval"] or (math.nan, math.nan)
            point = setting[over], score["accuracy"]["mean"], low, high
            curves.setdefault(f"{name}, {how}", []).append(point)
    return curves


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as tables, with what they were measured with."""
    scores = [score for setting in figures["settings"] for score in setting["lists"].values()]
    measured = [name for name in METRICS if any(name in score for score in scores)]
    reference = figures["reference"]
    how_columns = ["sampler", "guidance", "calls"]
    with_layout = any(setting.get("layout") for setting in figures["settings"])
    if with_layout:
        how_columns.append("layout")
    columns = ["list", *how_columns, "conditions"]
    columns += [METRICS[name].heading() for name in measured]
    with_second = any(score.get("second_evaluator") for score in scores)
    if with_second:
        columns += [f"{METRICS[name].title}, second" for name in SECOND_EVALUATOR_METRICS]
    if reference:
        columns += [distance.title for distance in DISTANCES.values()]
    rows, count_rows = [], []
    for setting in figures["settings"]:
        how = [
            " ".join(
                str(setting[key]) for key in ("sampler", "steps", "spacing") if key in setting
            ),
            f"{setting['guidance_scale']:g}",
            str(setting["network_calls"]),
        ]
        if with_layout:
            how.append(setting.get("layout") or "-")
        for name, score in setting["lists"].items():
            cells = [name, *how, str(score["conditions"])]
            cells += [
                with_interval(score.get(measure), measure == "accuracy") for measure in measured
            ]
            if with_second:
                of_second = score.get("second_evaluator", {})
                cells += [
                    with_interval(of_second.get(name), False) for name in SECOND_EVALUATOR_METRICS
                ]
            if reference:
                cells += distance_cells(score["distances"])
            rows.append(cells)
            by_count = ", ".join(f"{k}: {v:.3f}" for k, v in score["by_count"].items())
            count_rows.append([name, *how, by_count])
    lines = [
        f"Weights {figures['weights']}, trained on {trained_on_text(figures['trained_on'])}.",
        f"Read by {figures['evaluator']}. Machine: {figures['machine']}.",
        *second_lines(figures),
        "Lists: "
        + "; ".join(f"{name}, {origin}" for name, origin in figures["lists"].items())
        + ".",
        draws_text(figures["seeds"]),
        "",
        *table(columns, rows),
        "",
        "Accuracy is pooled top-k over labels. Exact match, missing and extra use the labels whose"
        " score is above one half; a second object of one label does not change them. An object"
        " whose shape is unclear has no label, and an image that shows one is not exact. Count"
        " accuracy: share of the images with as many objects as asked for, of those with fewer"
        " labels than the evaluator can count.",
    ]
    if reference:
        lines.append(
            f"Distances of all draws of a list to {reference['frames']} frames"
            f" ({trained_on_text(reference)}) in this evaluator's features. They compare weights on"
            " one list, not lists: the mix of labels and the number of images count."
        )
    if with_layout:
        lines.append(
            "Layout: where the objects stand is sampled before each image, `clear` of one another"
            " or as in the training `data`."
        )
    lines += ["", "Accuracy by number of objects, over all draws:", ""]
    lines += table(["list", *how_columns, "objects: accuracy"], count_rows)
    lines += fidelity_lines(figures["settings"])
    return "\n".join(lines) + "\n"


def second_lines(figures: Mapping[str, Any]) -> list[str]:
    """Which evaluator is the second one; [] without one."""
    if not figures.get("second_evaluator"):
        return []
    return [
        f"Second: read by {figures['second_evaluator']}, which has chosen nothing, neither a"
        " checkpoint nor a setting."
    ]


def fidelity_lines(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Generated images against held-out frames, each figure with its control; [] without any."""
    measured = [setting for setting in settings if "fidelity" in setting]
    if not measured:
        return []
    rows = []
    for setting in measured:
        fidelity = setting["fidelity"]
        how = [f"{setting['sampler']} {setting['steps']}", f"{setting['guidance_scale']:g}"]
        for of, count in (("images", fidelity["frames"]), ("crops", fidelity["crops"])):
            values = fidelity[f"of_{of}"]
            if values is not None:
                rows.append([*how, f"{count} {of}", *fidelity_cells(values)])
    columns = [title for title, _ in FIDELITY_COLUMNS.values()]
    return [
        "",
        "Fidelity: one image for the labels of each held-out frame, against those frames, with the"
        " layout `data` where the network takes positions. In brackets the control: the same figure"
        " between two halves of the frames. AUC: how well a freshly trained network tells the two"
        " sets apart, .5 where it cannot. Ratios: generated over real.",
        "",
        *table(["sampler", "guidance", "compared", *columns], rows),
    ]


def fidelity_cells(values: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [
        f"{scale * values[name]['value']:.3g} ({scale * values[name]['control']:.3g})"
        if name in values
        else "-"
        for name, (_, scale) in FIDELITY_COLUMNS.items()
    ]


def draws_text(seeds: int) -> str:
    if seeds == 1:
        return "One draw of each list: nothing is known of the spread."
    return (
        f"{seeds} draws of each list: mean ± standard deviation of the draws [95 % interval of the"
        " mean by Student's t, for other noise under the same conditions and weights]."
    )


def distance_cells(distances: Mapping[str, float]) -> list[str]:
    if not distances:  # fewer than two images
        return ["-", "-"]
    return [f"{distances['frechet']:.3g}", f"{1000 * distances['kernel']:.3g}"]


def trained_on_text(data: Any) -> str:
    if not isinstance(data, dict):
        return f"{data} frames"
    return " ".join(
        [
            f"{data['source']} frames",
            *(f"{k} {v}" for k, v in data.items() if k not in ("source", "frames")),
        ]
    )


def with_interval(value: Mapping[str, Any] | None, interval: bool) -> str:
    if value is None:
        return "-"
    text = f"{value['mean']:.4f}"
    if value["sd"] is not None:
        text += f" ± {value['sd']:.4f}"
        if interval:
            text += " [{:.4f}, {:.4f}]".format(*value["interval"])
    return text


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(columns), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(cells)} |" for cells in lines]
