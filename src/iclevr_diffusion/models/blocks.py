"""Residual blocks of the :class:`~.uvit.UViT` and the :class:`~.detail.DetailNet`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclevr_diffusion.utils.weights import set_to_zero

GROUP_CHANNELS = 16  # channels per group of a group norm, if there are as many


class Level(nn.Module):
    """Residual blocks of one resolution.

    Args:
        channels: Channels of all blocks.
        count: The number of blocks.
        condition: Width of the condition.
        by_pixel: Whether to normalize by :class:`PixelNorm`, instead of a group norm.
    """

    def __init__(self, channels: int, count: int, condition: int, by_pixel: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(channels, condition, by_pixel) for _ in range(count)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As :meth:`ResidualBlock.forward`."""
        for block in self.blocks:
            x = block(x, condition)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions, modulated by the condition (FiLM); initialized to the identity."""

    def __init__(self, channels: int, condition: int, by_pixel: bool = False) -> None:
        super().__init__()
        self.norm1 = PixelNorm() if by_pixel else group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = PixelNorm() if by_pixel else group_norm(channels, affine=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        set_to_zero(self.conv2)
        set_to_zero(self.film)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, C, H, W); condition: (B, width)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        result: Tensor = x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))
        return result


class PixelNorm(nn.Module):
    """Divide each pixel's channels, (B, C, H, W), by their root mean square.

    Unlike statistics over an image, it gives the same on a crop as on the whole image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized channels, in the same dtype."""
        wide = x.float() if x.dtype == torch.float16 else x  # squares may exceed float16's range
        return x * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt().to(x.dtype)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Return a group norm with groups of 16 channels, or one group if there are fewer."""
    return nn.GroupNorm(max(1, channels // GROUP_CHANNELS), channels, affine=affine)
