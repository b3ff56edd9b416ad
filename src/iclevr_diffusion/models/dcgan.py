"""A conditional DCGAN (Radford et al. 2016, arXiv 1511.06434), as in lab report 6."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.utils.checks import check_int, check_vocabulary

MOST_LATENT, MOST_CHANNELS, MOST_LEVELS = 8192, 8192, 8
INITIAL_SD = 0.02


class Generator(ModelMixin, ConfigMixin):
    """The generator: n + 1 transposed convolutions over latents and labels.

    Args:
        latent: Dimension of the latents.
        channels: Channels of each of the n levels, from 4x4 pixels up; four levels give 64x64.
        num_labels: L, the size of the vocabulary.

    Raises:
        ValueError: An argument has a wrong type or is out of range.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent: int = 100,
        channels: Sequence[int] = (512, 256, 128, 64),
        num_labels: int = NUM_LABELS,
    ) -> None:
        super().__init__()
        check_int("latent", latent, MOST_LATENT)
        check_channels(channels)
        check_vocabulary(num_labels, num_labels)
        self.latent = latent
        self.num_labels = num_labels
        size = 4 * 2 ** len(channels)
        self.image_shape = (3, size, size)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + num_labels, channels[0], 4, 1, 0, bias=False),
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
        self.layers.apply(initialize)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Generate images, (B, 3, S, S) in [-1, 1], S = 4 · 2ⁿ.

        Args:
            z: Standard normal latents, (B, latent).
            labels: float32, multi-hot, (B, L).
        """
        result: Tensor = self.layers(torch.cat([z, labels], dim=1)[:, :, None, None])
        return result


class Discriminator(nn.Module):
    """The discriminator, whose fourth input channel is a linear map of the labels.

    Args:
        channels: Channels of each level, from 4x4 pixels up, as the generator's.
        num_labels: L, the size of the vocabulary.

    Raises:
        ValueError: As :class:`Generator`.
    """

    def __init__(
        self, channels: Sequence[int] = (512, 256, 128, 64), num_labels: int = NUM_LABELS
    ) -> None:
        super().__init__()
        check_channels(channels)
        check_vocabulary(num_labels, num_labels)
        self.num_labels = num_labels
        self.size = 4 * 2 ** len(channels)
        self.plane = nn.Linear(num_labels, self.size**2)
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
        self.layers.apply(initialize)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the logits, (B,), of images (B, 3, S, S) being real, given labels (B, L)."""
        plane = self.plane(labels).view(-1, 1, self.size, self.size)
        result: Tensor = self.layers(torch.cat([images, plane.to(images.dtype)], dim=1))
        return result.flatten()


def initialize(layer: nn.Module) -> None:
    """Initialize weights from N(0, 0.02²) (Radford et al., section 4)."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(layer.weight, 0.0, INITIAL_SD)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, INITIAL_SD)


def check_channels(channels: Sequence[int]) -> None:
    """Check the number of levels and the channels of each.

    Raises:
        ValueError: They are out of range.
    """
    if not isinstance(channels, list | tuple) or not 1 <= len(channels) <= MOST_LEVELS:
        raise ValueError(f"channels must be a list of 1..{MOST_LEVELS} numbers")
    for count in channels:
        check_int("channels: each", count, MOST_CHANNELS)
