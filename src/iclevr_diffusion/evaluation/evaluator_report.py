"""How well an evaluator reads frames whose labels are known, and what it takes noise for."""

from typing import Any

import torch
from PIL import Image

from iclevr_diffusion.data.augment import augment
from iclevr_diffusion.data.labels import COLORS, NUM_LABELS, SHAPES, decode
from iclevr_diffusion.data.types import Frames, to_unit_range
from iclevr_diffusion.evaluation.classifier import CHUNK, Evaluator
from iclevr_diffusion.evaluation.classifier_output import shown_names
from iclevr_diffusion.evaluation.image_grid import caption, grid, to_uint8
from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics
from iclevr_diffusion.evaluation.metrics import shown
from iclevr_diffusion.utils.rng import keyed_generator


def evaluate_classifier(evaluator: Evaluator, frames: Frames) -> dict[str, Any]:
    """How well the evaluator reads labelled frames."""
    device = evaluator.device
    metrics = EvaluationMetrics(evaluator).to(device)
    for part in torch.arange(len(frames)).split(CHUNK):
        images, labels = frames.images[part].to(device), frames.labels[part].to(device)
        metrics.update(to_unit_range(images), labels)
    return {
        "frames": len(frames),
        **metrics.compute(),
        "by_count": metrics.by_count(),
        "by_label": metrics.by_label(),
    }


def mistakes(evaluator: Evaluator, frames: Frames, title: str, most: int = 64) -> Image.Image:
    """The frames that the evaluator misreads, ``most`` of them at most."""
    device = evaluator.device
    seen = [
        names
        for part in frames.images.split(CHUNK)
        for names in shown_names(evaluator(to_unit_range(part.to(device))).all_scores)
    ]
    true = [decode(row.clamp(max=1)) for row in frames.labels]
    wrong = [
        i for i, pair in enumerate(zip(true, seen, strict=True)) if set(pair[0]) != set(pair[1])
    ]
    chosen = wrong[:most]
    lines = [
        f"{title}: {len(wrong)} of {len(frames)}",
        "Red: - is there and was not read, + was read and is not there.",
    ]
    captions = [caption(true[i], seen[i]) for i in chosen]
    return grid(frames.images[chosen], captions=captions, title=lines)


def called_clear(evaluator: Evaluator, frames: Frames) -> dict[str, float | int]:
    """How often an evaluator gives an object without a clear shape one of the three shapes.

    Only objects count that are the only one of their color in the frame, and of which it is known
    that they are unclear.

    Args:
        frames: their labels are (N, L + 8), as in :mod:`~iclevr_diffusion.data.unclear`.

    Returns:
        ``objects``, how many, and ``called_clear``, the share of them with a score above one half
        for a label of their color.
    """
    device = evaluator.device
    scores = torch.cat(
        [evaluator(to_unit_range(part.to(device))).scores for part in frames.images.split(CHUNK)]
    )
    shaped = shown(scores).cpu().unflatten(1, (len(SHAPES), len(COLORS))).any(1)
    clear = frames.labels[:, :NUM_LABELS].unflatten(1, (len(SHAPES), len(COLORS)))
    alone = (frames.labels[:, NUM_LABELS:] == 1) & (clear == 0).all(1)
    count = int(alone.sum())
    share = float(shaped[alone].float().mean()) if count else float("nan")
    return {"objects": count, "called_clear": share}


def augmented(frames: Frames) -> Frames:
    """The frames as the evaluator learns from them: shifted, mirrored, tinted, slightly noisy."""
    generator = keyed_generator("augmented")
    images = torch.cat(
        [augment(to_unit_range(part), generator) for part in frames.images.split(CHUNK)]
    )
    return Frames(to_uint8(images), frames.labels, frames.sequences, frames.names)


def noise_like(frames: Frames) -> Frames:
    """Uniform noise under the frames' labels."""
    generator = keyed_generator("noise")
    noise = torch.randint(256, frames.images.shape, generator=generator, dtype=torch.uint8)
    return Frames(noise, frames.labels, frames.sequences, frames.names)


def with_a_wrong_label(frames: Frames) -> Frames:
    """The frames with one true label replaced by one of an object that is not in the image."""
    generator = keyed_generator("wrong label")
    draws = torch.rand(frames.labels.shape, generator=generator)
    present = frames.labels > 0.5
    rows = torch.arange(len(frames))
    labels = frames.labels.clone()
    labels[rows, draws.masked_fill(~present, -1).argmax(1)] = 0
    labels[rows, draws.masked_fill(present, -1).argmax(1)] = 1
    return Frames(frames.images, labels, frames.sequences, frames.names)
