"""A small convolutional denoiser, which can be trained on crops."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.checks import (
    check_lists_of_levels,
    check_multiple,
    check_number,
    check_whole,
)
from iclevr_diffusion.models.flops import flops
from iclevr_diffusion.models.layout import (
    PAINTED_CHANNELS,
    Layout,
    TakesPositions,
    painted_at,
    split_positions,
)
from iclevr_diffusion.utils.weights import matrices_but

MOST = {  # the largest settings accepted from a weights file
    "image_size": 1024,
    "levels": 6,
    "channels": 1024,
    "blocks": 16,
    "timesteps": 100_000,
}
SHARP = 0.4  # width of the second set of label maps, as a share of the first's
NOISE_OCTAVES = 4
NOISE_CHANNELS = 1 + 2 * NOISE_OCTAVES
EMBEDDING_CHANNELS = 128
INPUT_CHANNELS = 3 + 3 + 2 + 2 * PAINTED_CHANNELS  # image, mean frame, coordinates, label maps
FRAMES_AT_ONCE = 1024


class DetailNet(TakesPositions, ModelMixin, ConfigMixin):
    """``net(x_t, timesteps, labels)`` → x_0, (B, 3, H, W) in, (B, 3, H, W) out.

    A U-Net at full resolution whose output at a pixel depends on that pixel's neighbourhood and
    the noise level alone, so that it can be trained on crops and used on whole frames. It is told
    where the crop lies: label maps, coordinates and the mean frame are cropped alike.

    With σ the noise-to-signal ratio √((1 - ᾱ) / ᾱ), m the mean frame and y = x_t / √ᾱ - m, the
    estimate of x_0 is m + c_skip y + c_out F(c_in y, …), with the coefficients of Karras et al.
    2022, arXiv 2206.00364, table 1. F = 0 gives the Wiener estimate of frames that deviate from
    their mean by white noise of ``data_std``.

    Args:
        image_size: H = W of whole frames, in pixels.
        channels: of each level, from the finest to the coarsest; each but the last is followed by
            a halving of H and W.
        blocks: residual blocks of each level on the way down, and again on the way up.
        data_std: standard deviation of the frames about their mean frame, in [-1, 1].
        timesteps: T of the noise schedule.
        positions: whether it has a layout of its own, and can be used by itself; without, it is one
            of :class:`~.experts.NoiseExperts`.

    Raises:
        ValueError: a setting has a wrong type or is out of range.
    """

    mean_frame: Tensor
    noise_to_signal: Tensor

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        image_size: int = 64,
        channels: Sequence[int] = (32, 64, 96),
        blocks: Sequence[int] = (2, 2, 1),
        data_std: float = 0.12,
        timesteps: int = 1000,
        positions: bool = False,
    ) -> None:
        super().__init__()
        if type(positions) is not bool:
            raise ValueError(f"net.positions must be true or false, got {positions!r:.60}")
        check_whole("data.image_size", image_size, MOST["image_size"])
        check_whole("schedule.timesteps", timesteps, MOST["timesteps"])
        where = "net" if positions else "net.detail"
        names = f"{where}.channels", f"{where}.blocks"
        check_lists_of_levels(names[0], channels, names[1], blocks, MOST["levels"])
        for name, counts in zip(names, (channels, blocks), strict=True):
            for count in counts:
                check_whole(f"{name}: each", count, MOST[name.rsplit(".", 1)[1]])
        check_number(f"{where}.data_std", data_std)
        check_multiple(image_size, 1, len(channels), len(channels) - 1)
        self.image_size, self.data_std = image_size, data_std
        self.multiple = 2 ** (len(channels) - 1)
        self.layout = Layout(image_size) if positions else None
        self.register_buffer("mean_frame", torch.zeros(3, image_size, image_size))
        self.register_buffer("noise_to_signal", torch.ones(timesteps))
        self.noise_embedding = nn.Sequential(
            nn.Linear(NOISE_CHANNELS, EMBEDDING_CHANNELS),
            nn.SiLU(),
            nn.Linear(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS),
            nn.SiLU(),
        )
        self.conv_in = nn.Conv2d(INPUT_CHANNELS, channels[0], 3, padding=1)
        self.down = nn.ModuleList(map(Level, channels, blocks))
        self.up = nn.ModuleList(map(Level, channels, blocks))
        steps = list(pairwise(channels))
        self.to_coarser = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps)
        self.to_finer = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        _set_to_zero(self.conv_out)

    def fit(self, images: Tensor, noise_to_signal: Tensor) -> None:
        """Learn the mean of frames, uint8 (N, 3, H, W), and the schedule's noise levels, (T,)."""
        total = torch.zeros(self.mean_frame.shape, dtype=torch.float64)
        for some in images.split(FRAMES_AT_ONCE):
            total += some.sum(0, dtype=torch.int64).cpu()
        self.mean_frame.copy_(total / len(images) / 127.5 - 1)
        self.noise_to_signal.copy_(noise_to_signal)

    def check(self) -> None:
        """Refuse what cannot be computed with.

        Raises:
            ValueError: a noise level is zero or negative, or they do not rise; or the layout's
                density is none.
        """
        super().check()
        if self.noise_to_signal.min() <= 0 or (self.noise_to_signal.diff() < 0).any():
            raise ValueError("noise_to_signal must be positive and rise")

    def forward(
        self, x_t: Tensor, timesteps: Tensor, labels: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        """Estimate x_0.

        Args:
            x_t: (B, 3, h, w), noisy frames, or crops of them.
            timesteps: int64, (B,).
            labels: float32, (B, 3 L), with positions, as :func:`~.layout.with_positions`; a row of
                zeros asks for no labels in particular.
            corner: int64, (B, 2), row and column of each crop's first pixel in its frame; None for
                whole frames.

        Returns:
            float32, (B, 3, h, w).
        """
        sigma = self.noise_to_signal[timesteps]
        y, mean, inputs = self.inputs(x_t, sigma, labels, corner)
        c_skip, c_out = (c.view(-1, 1, 1, 1) for c in self.output_scales(sigma))
        return mean + c_skip * y + c_out * self.network(inputs, sigma).float()

    def output_scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out of noise-to-signal ratios (B,), each (B,)."""
        variance = sigma.square() + self.data_std**2
        return self.data_std**2 / variance, sigma * self.data_std / variance.sqrt()

    def inputs(
        self, x_t: Tensor, sigma: Tensor, labels: Tensor, corner: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y and the mean frame, (B, 3, h, w) each, and the inputs of F, (B, channels, h, w)."""
        labels, positions = split_positions(labels.float())
        rows, columns = self._rows_and_columns(x_t, corner)
        size = self.image_size
        mean = self.mean_frame[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        sigma = sigma.view(-1, 1, 1, 1)
        y = x_t.float() * (1 + sigma.square()).sqrt() - mean
        scale = (sigma.square() + self.data_std**2).rsqrt()
        down, across = ((2 * index[:, None] + 1) / size - 1 for index in (rows, columns))
        grid = torch.stack(
            [
                down.transpose(1, 2).expand(-1, -1, columns.shape[1]),
                across.expand(-1, rows.shape[1], -1),
            ],
            dim=1,
        )
        maps = [painted_at(labels, positions, down, across, width) for width in (1.0, SHARP)]
        return y, mean, torch.cat([scale * y, mean, grid, *maps], dim=1)

    def _rows_and_columns(self, x_t: Tensor, corner: Tensor | None) -> tuple[Tensor, Tensor]:
        """int64, (B, h) and (B, w): of each pixel in its frame."""
        if corner is None:
            corner = torch.zeros(len(x_t), 2, dtype=torch.long, device=x_t.device)
        height, width = (torch.arange(n, device=x_t.device) for n in x_t.shape[2:])
        return corner[:, :1] + height, corner[:, 1:] + width

    def network(self, inputs: Tensor, sigma: Tensor) -> Tensor:
        """F: (B, channels, h, w) → (B, 3, h, w), at noise-to-signal ratios (B,)."""
        condition = self.noise_embedding(noise_features(sigma))
        h = self.conv_in(inputs.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, to_coarser in zip(self.down, [*self.to_coarser, None], strict=True):
            h = level(h, condition)
            if to_coarser is not None:
                skips.append(h)
                h = to_coarser(F.pixel_unshuffle(h, 2))
        h = self.up[-1](h, condition)
        for level, to_finer, skip in zip(
            reversed(self.up[:-1]), reversed(self.to_finer), reversed(skips), strict=True
        ):
            h = level(skip + F.pixel_shuffle(to_finer(h), 2), condition)
        output: Tensor = self.conv_out(F.silu(pixel_norm(h)))
        return output

    def flops(self, size: int) -> int:
        """Floating-point operations of one pass over a crop of that many pixels on each side."""
        return flops(
            self,
            torch.zeros(1, 3, size, size),
            torch.zeros(1, dtype=torch.long),
            torch.zeros(1, 3 * NUM_LABELS),
        )

    def inner_weights(self) -> list[nn.Parameter]:
        """The weights of convolutions and linear maps from features to features."""
        return matrices_but(self, ("conv_in", "conv_out", "embedding"))


class Level(nn.Module):
    """Residual blocks of one size, one after the other."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(count))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, C, H, W); condition: (B, 128)."""
        for block in self.blocks:
            x = block(x, condition)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions; the noise level scales and shifts between them (FiLM).

    It begins as the identity. Each pixel is normalised by itself: statistics over a crop would
    differ from those over a frame.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(EMBEDDING_CHANNELS, 2 * channels)
        _set_to_zero(self.conv2)
        _set_to_zero(self.film)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As :meth:`Level.forward`."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = pixel_norm(self.conv1(F.silu(pixel_norm(x))))
        result: Tensor = x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))
        return result


def pixel_norm(x: Tensor) -> Tensor:
    """Each pixel's channels, (B, C, H, W), divided by their root mean square."""
    wide = x.float() if x.dtype == torch.float16 else x  # whose squares may exceed its range
    return x * (wide.square().mean(1, keepdim=True) + 1e-5).rsqrt().to(x.dtype)


def noise_features(sigma: Tensor) -> Tensor:
    """(B,) → (B, 9): ln σ, shifted and scaled to about [-1, 1], and its waves of four octaves."""
    level = (sigma.log()[:, None] + 3) / 2
    waves = level * 2.0 ** torch.arange(NOISE_OCTAVES, device=sigma.device) * (math.pi / 2)
    return torch.cat([level, waves.sin(), waves.cos()], dim=1)


def _set_to_zero(layer: nn.Module) -> None:
    for weight in layer.parameters():
        nn.init.zeros_(weight)
