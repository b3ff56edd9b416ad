"""Where the objects of frames stand, from what each frame of a sequence adds to the one before."""

import torch
from torch import Tensor

FIRST = (0.0, -0.14)  # where i-CLEVR's first objects stand: x to the right, y down, in [-1, 1]
CHANGE = 22  # of 255: what a new object changes, and its shadow does not
PIXELS_AT_ONCE = 2**23


def find_positions(images: Tensor, labels: Tensor, sequences: Tensor) -> Tensor:
    """Where each labelled object stands.

    i-CLEVR's frames come in sequences that add one object at a time: where a frame differs from
    the one before is the new one. The first stands where all first ones do.

    Args:
        images: uint8, (N, 3, H, W).
        labels: float32, (N, L), how many of each.
        sequences: int64, (N,), the sequence of each frame.

    Returns:
        float32, (N, L, 2), x to the right and y down, in [-1, 1] across the image; 0 where a
        frame has no such object, NaN where it cannot be told.
    """
    labels = labels.cpu()
    order = torch.argsort(sequences * (labels.shape[1] + 1) + labels.sum(1).long(), stable=True)
    before, after = order[:-1], order[1:]
    added = labels[after] - labels[before]
    one_more = (sequences[before] == sequences[after]) & (added.abs().sum(1) == 1)
    one_more &= added.sum(1) == 1
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


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """(B, 2): the median column and row of what changed between uint8 images (B, 3, H, W)."""
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
