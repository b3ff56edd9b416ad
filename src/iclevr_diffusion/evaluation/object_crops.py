"""Crops around objects, by themselves and on an empty floor."""

import torch
from torch import Tensor

CROP = 3 / 8  # of the side of the image: 24 of 64 pixels, slightly more than the nearest objects


def crop(images: Tensor, frame: Tensor, centers: Tensor) -> Tensor:
    """Square crops around objects; beyond the border the edge pixels repeat.

    Args:
        images: (N, 3, H, W).
        frame: int64, (M,), the image of each object.
        centers: (M, 2), x and y in [-1, 1].

    Returns:
        (M, 3, C, C), C = :data:`CROP` of H.
    """
    side = round(CROP * images.shape[2])
    columns, rows = (
        (start[:, None] + torch.arange(side)).clamp(0, size - 1)
        for start, size in _windows(images, centers)
    )
    cut = images[frame[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()


def on_floor(images: Tensor, frame: Tensor, centers: Tensor, floor: Tensor) -> Tensor:
    """Each object's crop where it is in its image, and ``floor`` (3, H, W) around it: (M, 3, H, W).

    This is how crops are read by the evaluator. It has learned from objects of this size in front
    of a floor: enlarged to its input a crop would be foreign to it, and resampled besides, which
    hides the very differences that are looked for. In position, the floor has the brightness of
    the crop's surroundings, so there is hardly a seam, and it is the same one for both sets.
    """
    side = round(CROP * images.shape[2])
    columns, rows = (
        (torch.arange(size) >= start[:, None]) & (torch.arange(size) < start[:, None] + side)
        for start, size in _windows(images, centers)
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images[frame], floor)


def _windows(images: Tensor, centers: Tensor) -> list[tuple[Tensor, int]]:
    """For x and y: the first column or row of each crop, (M,), and how many the image has."""
    side = round(CROP * images.shape[2])
    sizes = images.shape[3], images.shape[2]
    return [
        (((center + 1) / 2 * size - side / 2).floor().long(), size)
        for center, size in zip(centers.unbind(1), sizes, strict=True)
    ]
