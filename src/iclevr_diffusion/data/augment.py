"""What an evaluator has to see past: shifted, mirrored, tinted, slightly noisy images."""

import torch
from torch import Tensor

SHIFT = 3  # pixels
BRIGHTNESS, CONTRAST, TINT = 0.05, 0.08, 0.025
NOISE = 0.03  # twice the grain of real frames


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change each image in its own way, so that labels and counts stay true.

    Half are mirrored; shift, brightness, contrast, tint and noise differ from image to image. None
    is blurred: an evaluator that has learned to see past blur calls blurred objects clear.

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
