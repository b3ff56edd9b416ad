"""Fidelity: the similarity of generated images to real frames, beyond the right objects.

Every figure comes with its control: the same figure between two halves of the real frames. A figure
equal to its control means that, by this figure, the images are as similar to the real ones as those
are to each other. Frames are always split by sequence, so that near copies are on the same side.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.evaluator_datamodule import HELD_OUT_SHARE
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.splits import split_by_sequence
from iclevr_diffusion.data.types import Frames, Source
from iclevr_diffusion.diffusion.pipeline import Pipeline, refuse_nan
from iclevr_diffusion.evaluation.classifier import CHUNK, Evaluator, classify_frames
from iclevr_diffusion.evaluation.distances import distances
from iclevr_diffusion.evaluation.object_crops import crop, on_floor
from iclevr_diffusion.evaluation.results import Controlled, Fidelity
from iclevr_diffusion.evaluation.two_sample import high_pass, two_sample_auc
from iclevr_diffusion.models.layout import DATA
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.rng import image_generators

SEED = 0  # of the noise and the layouts of the generated images
MIN_SEQUENCES = 4  # the control of the two-sample test needs four parts


def fidelity(
    real: Tensor,
    generated: Tensor,
    sequences: Tensor,
    evaluator: Evaluator,
    labels: Tensor | None = None,
    real_positions: Tensor | None = None,
    generated_positions: Tensor | None = None,
) -> Fidelity:
    """Compare generated images with real frames of the same labels.

    Image i was generated for the labels of frame i. If labels and both positions are given, crops
    around each object whose position is known in both are compared as well.

    Args:
        real: Frames (N, 3, H, W), uint8, or float in [-1, 1].
        generated: Images of the same shape. Float images are rounded to 8 bits first, because
            a network would recognize finer steps.
        sequences: int64, (N,), the sequence of each real frame.
        evaluator: Its features are used for Fréchet and kernel distance.
        labels: float32, (N, L), multi-hot.
        real_positions: float32, (N, L, 2), x to the right and y down, in [-1, 1]; NaN if unknown.
        generated_positions: The same for the generated images.

    Returns:
        The figures of images and crops, each as :func:`compare` returns them, without a layout.

    Raises:
        ValueError: The sets differ in shape, or there are too few sequences.
    """
    real, generated = to_uint8(real), to_uint8(generated)
    if real.shape != generated.shape or len(sequences) != len(real):
        raise ValueError(
            "fidelity needs a generated image and a sequence for each real frame, got"
            f" {tuple(real.shape)}, {tuple(generated.shape)} and {len(sequences)} sequences"
        )
    sequences = sequences.cpu()
    both = [real, generated]
    result = Fidelity(len(real), 0, compare(both, both, sequences, evaluator))
    if labels is None or real_positions is None or generated_positions is None:
        return result
    positions = [real_positions.cpu(), generated_positions.cpu()]
    known = (labels.cpu() > 0) & torch.stack(positions).isfinite().all(0).all(-1)
    frame, label = known.nonzero().unbind(1)
    if len(sequences[frame].unique()) < MIN_SEQUENCES:
        return result
    centers = [of_set[frame, label] for of_set in positions]
    crops = compare_crops(both, frame, centers, sequences, evaluator)
    return dataclasses.replace(result, num_crops=len(frame), crops=crops)


def compare_crops(
    images: list[Tensor],
    frame: Tensor,
    centers: list[Tensor],
    sequences: Tensor,
    evaluator: Evaluator,
) -> dict[str, Controlled]:
    """Compare crops around objects, as :func:`compare` does images.

    Args:
        images: The real and the generated ones, uint8, (N, 3, H, W) each.
        frame: int64, (M,), the image of each object.
        centers: Positions of the objects in the real and in the generated images, (M, 2) each.
        sequences: int64, (N,), of both.
        evaluator: Computes the features, of each crop on an empty floor.
    """
    floor = images[0].median(0).values
    pairs = list(zip(images, centers, strict=True))
    crops = [crop(x, frame, center) for x, center in pairs]
    alone = [on_floor(x, frame, center, floor) for x, center in pairs]
    return compare(crops, alone, sequences[frame], evaluator)


def compare(
    images: list[Tensor], for_evaluator: list[Tensor], sequences: Tensor, evaluator: Evaluator
) -> dict[str, Controlled]:
    """Compute each figure with its control.

    - ``frechet``, ``kernel``: distances of the second half, generated or real, to the first half
      of the real frames, so that all sets have the same size.
    - ``auc``: of a network trained on one half of the frames and tested on the other; see
      :func:`~.evaluation.two_sample.two_sample_auc`.
    - ``sharpness``, ``grain``: ratios of generated to real; see :func:`sharpness`, :func:`grain`.

    Args:
        images: The real and the generated ones, uint8, (N, 3, h, w) each.
        for_evaluator: The same as input of the evaluator, (N, 3, H, W) each.
        sequences: int64, (N,), of both.
        evaluator: Computes the features.

    Raises:
        ValueError: There are fewer than :data:`MIN_SEQUENCES` sequences.
    """
    if len(sequences.unique()) < MIN_SEQUENCES:
        raise ValueError(f"fidelity needs frames of at least {MIN_SEQUENCES} sequences")
    real, generated = images
    first, second = split_by_sequence(sequences, 0.5)
    (a, b), (c, d) = (
        (half[train], half[test])
        for half in (first, second)
        for train, test in [split_by_sequence(sequences[half], 0.5)]
    )
    of_real, of_generated = (classify_frames(evaluator, x).features for x in for_evaluator)
    value = distances(of_generated[second], of_real[first])
    control = distances(of_real[second], of_real[first])
    value["auc"] = two_sample_auc(
        (real[first], generated[first]), (real[second], generated[second]), evaluator.device
    )
    control["auc"] = two_sample_auc((real[a], real[c]), (real[b], real[d]), evaluator.device)
    for name, measure in (("sharpness", sharpness), ("grain", grain)):
        whole, half = measure(real), measure(real[first])
        if whole and half:  # flat images without any grain have no ratio
            value[name] = measure(generated) / whole
            control[name] = measure(real[second]) / half
    return {name: Controlled(value[name], control[name]) for name in value}


def sharpness(images: Tensor) -> float:
    """Return the mean squared (five-point) Laplacian over all channels of uint8 images, in 0..1."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    total = 0.0
    for part in images.split(CHUNK):
        values = F.conv2d(part.flatten(0, 1)[:, None].float() / 255, kernel)
        total += float(values.square().mean((1, 2, 3)).double().sum())
    return total / (len(images) * images.shape[1])


def grain(images: Tensor) -> float:
    """Return the noise of smooth areas: the median absolute high-pass, averaged over uint8 images.

    The median hardly depends on the edges, which are few.
    """
    total = 0.0
    for part in images.split(CHUNK):
        values = high_pass(part.float() / 255).abs().flatten(1)
        total += float(values.median(1).values.double().sum())
    return total / len(images)


def held_out_frames(source: Source) -> Frames:
    """Return the frames that the evaluator was not trained on: a tenth of the sequences.

    They include the validation frames of the diffusion training, 2 % of the sequences by default,
    since both splits take the first sequences of one permutation. The diffusion training has seen
    the others.
    """
    frames = source.load_frames()
    return frames.take(split_by_sequence(frames.sequences, HELD_OUT_SHARE)[1])


def held_out_sequences(source: Source) -> int:
    """Count the sequences of :func:`held_out_frames` without reading a frame."""
    sequences = source.sequences()
    return len(sequences[split_by_sequence(sequences, HELD_OUT_SHARE)[1]].unique())


def pipeline_fidelity(
    pipeline: Pipeline,
    evaluator: Evaluator,
    frames: Frames,
    batch_size: int = 64,
    progress: Callable[[int], object] = lambda images: None,
) -> Fidelity:
    """Generate one image for the labels of each frame, and compare them; see :func:`fidelity`.

    If the network takes positions, they are sampled first, with the layout ``data`` whatever the
    pipeline's layout: positions without overlaps differ visibly from real ones.

    Returns:
        As :func:`fidelity`, with the layout.

    Raises:
        UserError: The network generates NaN or infinite values.
    """
    generators = image_generators(SEED, range(len(frames)), "fidelity")
    labels = frames.labels.to(evaluator.device)
    positions = pipeline.sample_positions(labels, generators, DATA)
    images = []
    for start in range(0, len(frames), batch_size):
        rows = slice(start, start + batch_size)
        where = None if positions is None else positions[rows]
        part = pipeline(labels[rows], generators[rows], None, batch_size, where)
        refuse_nan(part)
        images.append(to_uint8(part))
        progress(len(part))
    known = positions is not None
    figures = fidelity(
        frames.images,
        torch.cat(images),
        frames.sequences,
        evaluator,
        frames.labels,
        find_positions(frames.images, frames.labels, frames.sequences) if known else None,
        None if positions is None else positions[..., :2],  # without headings
    )
    return dataclasses.replace(figures, layout=DATA if known else None)
