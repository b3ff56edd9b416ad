"""From values to pixels."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Convert images from [-1, 1] to uint8 0..255 on the CPU, same shape.

    Raises:
        ValueError: A value is not finite.
    """
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
