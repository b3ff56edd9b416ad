"""The images of an evaluation: grids, a denoising strip, plots; each names its evaluator."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from iclevr_diffusion.evaluation.evaluation_report import guidance_text
from iclevr_diffusion.evaluation.image_grid import LEGEND, Strip, caption, grid, save_image
from iclevr_diffusion.evaluation.list_score import ListScore
from iclevr_diffusion.evaluation.plots import (
    Curves,
    accuracy_by_step_plot,
    accuracy_plot,
    confusion_plot,
)
from iclevr_diffusion.evaluation.results import Evaluation

GRID_IMAGES = 64


def save_images(
    folder: Path,
    heading: Sequence[str],
    scores: Mapping[str, ListScore],
    strip: Strip | None = None,
) -> list[Path]:
    """Save the grids, the denoising strip and the plots of one setting.

    Args:
        folder: For the files.
        heading: Lines of text above each image.
        scores: By condition list.
        strip: Recorded while the first list was sampled; None for given images.
    """
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
    vocabulary = next(iter(scores.values())).vocabulary
    plot = confusion_plot(total, weight, "\n".join(heading), vocabulary)
    paths.append(save_image(plot, folder / "confusion.png"))
    if strip is None:
        return paths
    results = {name: score.result for name, score in scores.items()}
    by_step = {name: (result.by_step, result.by_step_x_t) for name, result in results.items()}
    plot = accuracy_by_step_plot(by_step, "\n".join(heading))
    paths.append(save_image(plot, folder / "accuracy_by_step.png"))
    first = next(iter(scores))
    title = [*heading, f"The first images of {first}: x_t, and under it the estimate of x_0."]
    paths.append(save_image(strip.image(title), folder / "strip.png"))
    return paths


def save_accuracy_plot(evaluation: Evaluation, folder: Path) -> Path:
    """Plot the accuracy of several settings.

    The x axis is the guidance scale if nothing else differs, else the number of network calls.
    """
    title = f"{evaluation.weights}\nclassified by {evaluation.evaluator}"
    if len({(setting.sampler, setting.steps) for setting in evaluation.settings}) == 1:
        plot = accuracy_plot(_curves(evaluation, True), title, "guidance scale", "linear")
        return save_image(plot, folder / "accuracy_over_guidance.png")
    plot = accuracy_plot(_curves(evaluation, False), title, "network calls per image", "log")
    return save_image(plot, folder / "accuracy_over_calls.png")


def _curves(evaluation: Evaluation, over_guidance: bool) -> Curves:
    """Return points (x, mean, low, high) for each list and each combination of other settings."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for setting, list_name, scores in evaluation.results():
        if over_guidance:
            x, name = setting.guidance_scale, f"{setting.sampler} {setting.steps} steps"
            if mode := setting.options.get("guidance_mode"):
                name += f", {mode} guidance"
        else:
            x = float(setting.network_calls)
            name = f"{setting.sampler}, guidance {guidance_text(setting)}"
        if length := setting.options.get("ema_length"):
            name += f", EMA length {length:g}"
        if setting.layout:
            name += f", layout {setting.layout}"
        accuracy = scores.metrics["accuracy"]
        low, high = accuracy.interval or (math.nan, math.nan)
        curves.setdefault(f"{list_name}, {name}", []).append((x, accuracy.mean, low, high))
    return curves
