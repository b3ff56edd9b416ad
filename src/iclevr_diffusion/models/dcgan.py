"""A conditional DCGAN (Radford et al. 2016, arXiv 1511.06434), as lab report 6 describes it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.checks import check_whole

MOST_LATENT, MOST_CHANNELS, MOST_LEVELS = 8192, 8192, 8
INITIAL_SD = 0.02


class Generator(ModelMixin, ConfigMixin):
    """``generator(z, labels)`` → images (B, 3, S, S) in [-1, 1], S = 4 · 2ⁿ for n channels.

    The vector of latent numbers and labels passes n + 1 transposed convolutions.

    Args:
        latent: numbers of z.
        channels: of each level, from 4x4 pixels up; four of them make 64x64.

    Raises:
        ValueError: a setting is of a wrong type or out of range.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, latent: int = 100, channels: Sequence[int] = (512, 256, 128, 64)) -> None:
        super().__init__()
        check_whole("net.latent", latent, MOST_LATENT)
        check_channels(channels)
        self.latent = latent
        size = 4 * 2 ** len(channels)
        self.image_shape = (3, size, size)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + NUM_LABELS, channels[0], 4, 1, 0, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(True),
        ]
        for before, after in pairwise(channels):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(True),
            ]
        layers += [nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.layers.apply(initialise)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images of z, (B, latent), standard normal, and labels, multi-hot float32 (B, L)."""
        result: Tensor = self.layers(torch.cat([z, labels], dim=1)[:, :, None, None])
        return result


class Discriminator(nn.Module):
    """``discriminator(images, labels)`` → logits (B,) of the images being real.

    The labels become a plane of pixels of their own, beside red, green and blue.

    Args:
        channels: of each level, from 4x4 pixels up, as the generator's.

    Raises:
        ValueError: as the generator.
    """

    def __init__(self, channels: Sequence[int] = (512, 256, 128, 64)) -> None:
        super().__init__()
        check_channels(channels)
        self.size = 4 * 2 ** len(channels)
        self.plane = nn.Linear(NUM_LABELS, self.size**2)
        falling = list(reversed(channels))
        layers: list[nn.Module] = [
            nn.Conv2d(4, falling[0], 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, True),
        ]
        for before, after in pairwise(falling):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2, True),
            ]
        layers += [nn.Conv2d(falling[-1], 1, 4, 1, 0, bias=False)]
        self.layers = nn.Sequential(*layers)
        self.layers.apply(initialise)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits of images (B, 3, S, S) in [-1, 1] and labels, multi-hot float32 (B, L)."""
        plane = self.plane(labels).view(-1, 1, self.size, self.size)
        result: Tensor = self.layers(torch.cat([images, plane.to(images.dtype)], dim=1))
        return result.flatten()


def initialise(layer: nn.Module) -> None:
    """Normal weights with standard deviation .02 (Radford et al., section 4)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, INITIAL_SD)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, INITIAL_SD)


def check_channels(channels: Sequence[int]) -> None:
    if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= MOST_LEVELS:
        raise ValueError(f"net.channels must be a list of 1..{MOST_LEVELS} numbers")
    for count in channels:
        check_whole("net.channels: each", count, MOST_CHANNELS)
