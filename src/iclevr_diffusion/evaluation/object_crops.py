"""Crops around objects, by themselves and on an empty floor."""

import torch
from torch import Tensor

CROP = 3 / 8  # of the side of the image: 24 of 64 pixels, slightly more than the nearest objects


def crop(images: Tensor, frame: Tensor, centers: Tensor) -> Tensor:
    """Cut square crops around objects, with edge pixels repeated beyond the border.

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
    """Put each object's crop at its position on an empty floor.

    The evaluator classifies crops like this because it was trained on objects of this size in front
    of a floor. A crop enlarged to the input size would look unusual to it, and resampling would
    hide the differences to be measured. At the object's position, the floor has the brightness of
    the crop's surroundings, so there is hardly a seam; it is the same for both sets.

    Args:
        images: (N, 3, H, W).
        frame: int64, (M,), the image of each object.
        centers: (M, 2), x and y in [-1, 1].
        floor: (3, H, W).

    Returns:
        (M, 3, H, W).
    """
    side = round(CROP * images.shape[2])
    columns, rows = (
        (torch.arange(size) >= start[:, None]) & (torch.arange(size) < start[:, None] + side)
        for start, size in _windows(images, centers)
    )
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images[frame], floor)


def _windows(images: Tensor, centers: Tensor) -> list[tuple[Tensor, int]]:
    """For x and y: the first column or row of each crop, (M,), and the size of the image."""
    side = round(CROP * images.shape[2])
    sizes = images.shape[3], images.shape[2]
    return [
        (((center + 1) / 2 * size - side / 2).floor().long(), size)
        for center, size in zip(centers.unbind(1), sizes, strict=True)
    ]
