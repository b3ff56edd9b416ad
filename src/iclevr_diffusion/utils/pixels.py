"""From values to pixels."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_arrays(images: Tensor) -> npt.NDArray[np.uint8]:
    """Convert images (N, 3, H, W), as :func:`to_uint8` takes them, to arrays (N, H, W, 3) for PIL.

    Raises:
        ValueError: A value is not finite.
    """
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def to_uint8(images: Tensor) -> Tensor:
    """Convert images from [-1, 1] to uint8 0..255 on the CPU, same shape; uint8 images stay so.

    Raises:
        ValueError: A value is not finite.
    """
    if images.dtype == torch.uint8:
        return images.cpu()
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
