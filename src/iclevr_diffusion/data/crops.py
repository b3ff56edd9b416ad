"""Training crops: where they lie in the frames, and how they are cut."""

from dataclasses import dataclass

import torch
from torch import Tensor

from iclevr_diffusion.utils.checks import check_share

JITTER = 8  # pixels, the maximum distance between the center of a crop and its object


@dataclass(frozen=True)
class Crops:
    """Square crops, some of them around an object, the others anywhere in the frame.

    Attributes:
        size: Side of a crop, in pixels.
        near_objects: Share of the crops that are centered on a random object of the frame, up to a
            shift of eight pixels and the frame's edges. A frame with no object, or with unknown
            positions, is cropped anywhere.

    Raises:
        ValueError: A setting is out of range.
    """

    size: int
    near_objects: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"crop_size must be at least 1 or null, got {self.size}")
        check_share("crop_near_objects", self.near_objects)

    def corners(
        self, labels: Tensor, positions: Tensor | None, image_size: int, uniform: Tensor
    ) -> Tensor:
        """Choose the row and column of each crop's first pixel, int64, (B, 2).

        Args:
            labels: (B, L), multi-hot.
            positions: (B, L, D), x and y of each object in [-1, 1] first, NaN where unknown; None
                if all are unknown.
            image_size: Side of the frames, in pixels.
            uniform: (B, 6), random numbers in [0, 1).
        """
        room = image_size - self.size
        anywhere = (uniform[:, :2] * (room + 1)).long()
        if positions is None:
            return anywhere
        present = (labels > 0) & positions.isfinite().all(-1)
        chosen = (uniform[:, 2] * present.sum(1)).long()
        which = (present.cumsum(1) > chosen[:, None]).int().argmax(1)
        rows = torch.arange(len(positions), device=positions.device)
        x_and_y = positions[rows, which, :2].nan_to_num()
        middle = (x_and_y.flip(1) + 1) / 2 * image_size
        shift = (2 * uniform[:, 3:5] - 1) * JITTER
        about_object = (middle + shift - self.size / 2).round().long().clamp(0, room)
        is_near = (uniform[:, 5] < self.near_objects) & present.any(1)
        return torch.where(is_near[:, None], about_object, anywhere)


def cut(images: Tensor, corners: Tensor, size: int) -> Tensor:
    """Cut crops (B, C, size, size) at corners (B, 2) out of images (B, C, H, W)."""
    steps = torch.arange(size, device=images.device)
    rows, columns = (corners[:, i, None] + steps for i in (0, 1))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    cropped = images[batch, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
