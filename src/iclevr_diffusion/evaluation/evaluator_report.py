"""Tests of an evaluator on labeled frames, and on frames with noise or wrong labels."""

from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from iclevr_diffusion.data.augment import augment
from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NUM_LABELS, SHAPES
from iclevr_diffusion.data.types import Frames, to_unit_range
from iclevr_diffusion.evaluation.classifier import CHUNK, Evaluator, classify_frames
from iclevr_diffusion.evaluation.classifier_output import is_exact, shown_names
from iclevr_diffusion.evaluation.image_grid import caption, grid
from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics
from iclevr_diffusion.evaluation.metrics import shown
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.rng import keyed_generator


def evaluate_classifier(evaluator: Evaluator, frames: Frames) -> dict[str, Any]:
    """Score the evaluator on labeled frames, in this process alone.

    Returns:
        The number of ``frames``, the metrics by name, and the accuracies ``by_count`` and
        ``by_label``.
    """
    metrics = EvaluationMetrics(evaluator, sync_on_compute=False).to(evaluator.device)
    metrics.add(classify_frames(evaluator, frames.images), frames.labels.to(evaluator.device))
    return {
        "frames": len(frames),
        **metrics.compute(),
        "by_count": metrics.by_count(),
        "by_label": metrics.by_label(),
    }


def mistakes(evaluator: Evaluator, frames: Frames, title: str, most: int = 64) -> Image.Image:
    """Show at most ``most`` of the frames that the evaluator classifies wrongly."""
    seen = shown_names(classify_frames(evaluator, frames.images).all_scores)
    true = [ICLEVR_LABELS.decode(row.clamp(max=1)) for row in frames.labels]
    pairs = zip(true, seen, strict=True)
    wrong = [index for index, pair in enumerate(pairs) if not is_exact(*pair)]
    chosen = wrong[:most]
    lines = [
        f"{title}: {len(wrong)} of {len(frames)}",
        "Red: - was not recognized, + is not in the frame.",
    ]
    captions = [caption(true[i], seen[i]) for i in chosen]
    return grid(frames.images[chosen], captions=captions, title=lines)


def called_clear(evaluator: Evaluator, frames: Frames) -> dict[str, float | int | None]:
    """Measure how often an evaluator takes an object of unclear shape for one of the three shapes.

    Only objects that are known to be unclear and have a color of their own in the frame count. The
    labels are (N, L + 8), as in :mod:`~iclevr_diffusion.data.unclear`.

    Returns:
        The number of ``objects``, and as ``called_clear`` the share of them for which a label of
        their color has a score above one half; None without any.
    """
    scores = classify_frames(evaluator, frames.images).scores
    shaped = shown(scores).cpu().unflatten(1, (len(SHAPES), len(COLORS))).any(1)
    clear = frames.labels[:, :NUM_LABELS].unflatten(1, (len(SHAPES), len(COLORS)))
    alone = (frames.labels[:, NUM_LABELS:] == 1) & (clear == 0).all(1)
    count = int(alone.sum())
    share = float(shaped[alone].float().mean()) if count else None
    return {"objects": count, "called_clear": share}


def augmented(frames: Frames) -> Frames:
    """Augment frames as in the evaluator's training: shifted, mirrored, tinted, noisy."""
    generator = keyed_generator("augmented")
    images = torch.cat(
        [augment(to_unit_range(part), generator) for part in frames.images.split(CHUNK)]
    )
    return replace(frames, images=to_uint8(images))


def noise_like(frames: Frames) -> Frames:
    """Replace the images by uniform noise, and keep the labels."""
    generator = keyed_generator("noise")
    noise = torch.randint(256, frames.images.shape, generator=generator, dtype=torch.uint8)
    return replace(frames, images=noise)


def with_a_wrong_label(frames: Frames) -> Frames:
    """Replace one true label of each frame by one of an object that is not in the image."""
    generator = keyed_generator("wrong label")
    random = torch.rand(frames.labels.shape, generator=generator)
    present = frames.labels > 0.5
    rows = torch.arange(len(frames))
    labels = frames.labels.clone()
    labels[rows, random.masked_fill(~present, -1).argmax(1)] = 0
    labels[rows, random.masked_fill(present, -1).argmax(1)] = 1
    return replace(frames, labels=labels)
