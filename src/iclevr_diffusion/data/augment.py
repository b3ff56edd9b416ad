"""Pictures as a generator spoils them: shifted, mirrored, tinted, blurred, noisy."""

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 3  # pixels
BRIGHTNESS, CONTRAST, TINT = 0.05, 0.08, 0.025
BLUR = (0.3, 1.2)  # standard deviations, in pixels
NOISE = 0.12
RADIUS = 3


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil each picture in its own way, so that labels and counts stay true.

    Half are mirrored, half are blurred; shift, brightness, contrast, tint and noise differ
    from picture to picture.

    Args:
        images: float32 (B, 3, H, W) in [-1, 1].
        generator: on the images' device.

    Returns:
        As ``images``, in [-1, 1].
    """
    n = len(images)

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        draws = torch.rand(n, channels, 1, 1, generator=generator, device=images.device)
        return low + (high - low) * draws

    images = _shift(images, generator)
    images = torch.where(uniform(0, 1) < 0.5, images.flip(3), images)
    images = torch.where(uniform(0, 1) < 0.5, _blur(images, uniform(*BLUR)), images)
    gain = 1 + uniform(-CONTRAST, CONTRAST) + uniform(-TINT, TINT, channels=3)
    images = images * gain + uniform(-BRIGHTNESS, BRIGHTNESS)
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + uniform(0, 1) ** 2 * NOISE * noise).clamp(-1, 1)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    n, channels, height, width = images.shape
    device = images.device
    offset = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator, device=device)
    rows = (offset[0] + torch.arange(height, device=device) - SHIFT).clamp(0, height - 1)
    columns = (offset[1] + torch.arange(width, device=device) - SHIFT).clamp(0, width - 1)
    images = images.gather(2, rows[:, None, :, None].expand(n, channels, height, width))
    return images.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def _blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur; ``deviation`` (B, 1, 1, 1) in pixels."""
    n, channels, height, _ = images.shape
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / deviation) ** 2)
    kernels = (kernels / kernels.sum(3, keepdim=True)).repeat_interleave(channels, 0)
    rows = F.pad(images, (RADIUS,) * 4, mode="replicate").view(1, n * channels, height + 6, -1)
    rows = F.conv2d(rows, kernels, groups=n * channels)
    return F.conv2d(rows, kernels.transpose(2, 3), groups=n * channels).view_as(images)
