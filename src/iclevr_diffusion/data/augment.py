"""Augmentation for evaluators: shift, mirror, tint, slight noise, slight softening."""

import torch
from torch import Tensor

SHIFT = 3  # pixels
BRIGHTNESS, CONTRAST, TINT = 0.05, 0.08, 0.025
NOISE = 0.03  # twice the grain of real frames
SOFT = 1 / 6  # maximum weight of each neighbor
SOFTENED = 0.3  # share of images


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment each image independently; labels and counts stay valid.

    Half of the images are mirrored; shift, brightness, contrast, tint and noise vary. Some images
    are softened, at most to the sharpness of full-size frames that are reduced to 64×64 by
    averaging, as :mod:`.iclevr.decode` does it: their mean squared Laplacian is a fifth of that of
    the course's frames of 64×64, which are not averaged. None is blurred more than that: an
    evaluator that has learned to ignore blur calls blurred objects clear.

    Args:
        images: float32 (B, 3, H, W) in [-1, 1].
        generator: On the images' device.

    Returns:
        As ``images``, in [-1, 1].
    """
    n = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        random = torch.rand(n, channels, 1, 1, generator=generator, device=images.device)
        return low + (high - low) * random

    images = _shift(images, generator)
    images = torch.where(uniform(0, 1) < 0.5, images.flip(3), images)
    images = _soften(images, torch.where(uniform(0, 1) < SOFTENED, uniform(0, SOFT), 0.0))
    gain = 1 + uniform(-CONTRAST, CONTRAST) + uniform(-TINT, TINT, channels=3)
    images = images * gain + uniform(-BRIGHTNESS, BRIGHTNESS)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + uniform(0, 1) ** 2 * NOISE * noise).clamp(-1, 1)


def _soften(images: Tensor, weight: Tensor) -> Tensor:
    """Mix each pixel with its neighbors, by a weight (B, 1, 1, 1), along rows and columns."""
    for axis in (2, 3):
        size = images.shape[axis]
        index = torch.arange(size, device=images.device)
        before = images.index_select(axis, (index - 1).clamp(min=0))
        after = images.index_select(axis, (index + 1).clamp(max=size - 1))
        images = images + weight * (before + after - 2 * images)
    return images


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    n, channels, height, width = images.shape
    device = images.device
    offset = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator, device=device)
    rows = (offset[0] + torch.arange(height, device=device) - SHIFT).clamp(0, height - 1)
    columns = (offset[1] + torch.arange(width, device=device) - SHIFT).clamp(0, width - 1)
    images = images.gather(2, rows[:, None, :, None].expand(n, channels, height, width))
    return images.gather(3, columns[:, None, None, :].expand(n, channels, height, width))
