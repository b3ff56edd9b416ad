"""Positions of the objects in a sequence of frames, and a prior over them.

Positions are (…, 2), x to the right and y down, in [-1, 1] across the image. Those of a network
that takes headings are (…, 4), as :func:`~.poses.encode_poses`.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from iclevr_diffusion.utils.errors import UserError

FIRST = (0.0, -0.14)  # position of the first object of every sequence in i-CLEVR
CHANGE = 22  # of 255: changes of a new object are larger, those of its shadow smaller
PIXELS_AT_ONCE = 2**23
GRID = 16  # cells of the prior's density, per side

log = logging.getLogger(__name__)


def find_positions(images: Tensor, labels: Tensor, sequences: Tensor) -> Tensor:
    """Find the position of each labeled object.

    i-CLEVR's frames come in sequences that add one object at a time: the pixels that differ from
    the previous frame show the new object. All first objects have the same position.

    Args:
        images: uint8, (N, 3, H, W).
        labels: float32, (N, L), object counts.
        sequences: int64, (N,), the sequence of each frame.

    Returns:
        float32, (N, L, 2), 0 where a frame has no such object, NaN where the position is unknown.
    """
    labels = labels.cpu()
    order, one_more = find_growth(labels, sequences)
    before, after = order[:-1], order[1:]
    at_once = max(1, PIXELS_AT_ONCE // images[0, 0].numel())
    centers = {
        int(frame): center
        for part in one_more.nonzero().flatten().split(at_once)
        for frame, center in zip(
            after[part], _changed(images[before[part]], images[after[part]]), strict=True
        )
    }
    grows = dict(zip(after.tolist(), one_more.tolist(), strict=True))
    positions = torch.zeros(*labels.shape, 2)
    previous = -1
    for frame in order.tolist():
        present = labels[frame] > 0
        if grows.get(frame, False):
            positions[frame] = positions[previous]
            positions[frame, labels[frame] > labels[previous]] = centers[frame]
        elif labels[frame].sum() == 1:
            positions[frame, present] = torch.tensor(FIRST)
        else:
            positions[frame, present] = torch.nan
        previous = frame
    return positions


def find_growth(labels: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Find the frames that show one object more than the frame before.

    Args:
        labels: (N, L), object counts.
        sequences: int64, (N,), the sequence of each frame.

    Returns:
        The frames ordered by sequence and number of objects, int64, (N,); and for all but the first
        of them whether it shows what the one before shows, and one object more, bool, (N - 1,).
    """
    order = torch.argsort(sequences * (labels.shape[1] + 1) + labels.sum(1).long(), stable=True)
    before, after = order[:-1], order[1:]
    added = labels[after] - labels[before]
    one_more = (sequences[before] == sequences[after]) & (added.abs().sum(1) == 1)
    return order, one_more & (added.sum(1) == 1)


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """Median column and row of the changes between uint8 images (B, 3, H, W), as (B, 2)."""
    change = (after.short() - before.short()).abs().amax(1).cpu().float()
    change = torch.where(change > CHANGE, change, 0.0)
    medians = []
    for profile in (change.sum(1), change.sum(2)):
        sums = profile.cumsum(1)
        index = torch.searchsorted(sums, sums[:, -1:] / 2).squeeze(1).float()
        medians.append((index + 0.5) / profile.shape[1] * 2 - 1)
    center = torch.stack(medians, dim=1)
    center[change.amax((1, 2)) == 0] = torch.nan  # hidden behind another
    return center


class PositionPrior(NamedTuple):
    """Statistics of the positions in training frames.

    Attributes:
        first: (2,), position of an object that is alone in its frame, whatever its label.
        density: (16, 16), share of the other objects in each cell of the image, rows first.
        turning: bool, (L,), labels whose objects have a heading.
    """

    first: Tensor
    density: Tensor
    turning: Tensor


def fit_prior(labels: Tensor, positions: Tensor) -> PositionPrior:
    """Fit the prior to labels (N, L), multi-hot, and positions (N, L, 2 or 4), NaN if unknown."""
    labels, positions = labels.cpu(), positions.cpu()
    turning = (positions[..., 2:] != 0).any(-1).any(0)
    positions = positions[..., :2]
    first, density = torch.zeros(2), torch.ones(GRID, GRID)
    known = (labels > 0) & positions.isfinite().all(-1)
    alone = positions[known & (labels.sum(1, keepdim=True) == 1)]
    if len(alone):
        first = alone.mean(0)
    others = positions[known & (labels.sum(1, keepdim=True) > 1)]
    others = others[(others - first).abs().amax(1) > 1e-4]
    if len(others):
        x, y = ((others + 1) / 2 * GRID).long().clamp(0, GRID - 1).unbind(1)
        counts = torch.bincount(y * GRID + x, minlength=GRID * GRID).float()
        density = counts.view(GRID, GRID) / counts.sum()
    return PositionPrior(first, density, turning)


def check_positions_known(positions: Tensor) -> None:
    """Refuse training frames if the positions in most of them, (N, L, 2), are unknown (NaN).

    Raises:
        UserError: More than half of the frames have an unknown position.
    """
    unknown = int((~positions.isfinite()).any(-1).any(-1).sum())
    if unknown > len(positions) / 2:
        raise UserError(
            f"the positions of the objects are unknown in {unknown} of {len(positions)} training"
            " frames, which do not come in sequences that add one object per frame; choose a"
            " network that takes no positions, such as net=unet data.crop_size=null"
        )
    if unknown > len(positions) / 20:
        log.warning(
            "the positions of the objects are unknown in %d of %d training frames; these are used"
            " without labels",
            unknown,
            len(positions),
        )
