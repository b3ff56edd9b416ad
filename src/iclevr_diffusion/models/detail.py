"""A small convolutional denoiser that can be trained on crops."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.blocks import Level, PixelNorm
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.models.position_features import default_colors, label_maps_at
from iclevr_diffusion.models.protocol import pass_flops
from iclevr_diffusion.utils.checks import (
    MAX_TIMESTEPS,
    check_bool,
    check_divisible,
    check_int,
    check_level_lists,
    check_positive,
    check_vocabulary,
)
from iclevr_diffusion.utils.weights import matrices_but, set_to_zero

MOST = {  # the largest values accepted, since weights files may ask for anything
    "image_size": 1024,
    "levels": 6,
    "channels": 1024,
    "blocks": 16,
    "timesteps": MAX_TIMESTEPS,
}
SHARP = 0.4  # width of the second set of label maps, relative to the first
NOISE_OCTAVES = 4
NOISE_CHANNELS = 1 + 2 * NOISE_OCTAVES
EMBEDDING_CHANNELS = 128
IMAGES_AT_ONCE = 1024


class DetailNet(ModelMixin, ConfigMixin):
    """A U-Net at full resolution; a :class:`~.protocol.CropNetwork`.

    Its output at a pixel depends on that pixel's neighborhood and the noise level alone, so it can
    be trained on crops and used on whole images. The crop's position in the image is known to it:
    label maps, coordinates and the mean image are cropped alike.

    With ``preconditioning`` it estimates x_0. With the noise-to-signal ratio σ = √((1 - ᾱ) / ᾱ),
    the mean image m and y = x_t / √ᾱ - m, the estimate is m + c_skip y + c_out F(c_in y, …), with
    the coefficients of Karras et al. 2022, arXiv 2206.00364, table 1. F = 0 is the Wiener estimate
    for images that differ from their mean by white noise of standard deviation ``data_std``. The
    schedule must be variance preserving (x_t = √ᾱ x_0 + √(1 - ᾱ) ε).

    Without ``preconditioning``, the output is F(x_t, …), which means what the prediction says.

    Args:
        image_size: H = W of whole images, in pixels.
        channels: Channels of each level, from the finest to the coarsest; each level but the last
            is followed by a halving of H and W.
        blocks: Residual blocks of each level on the way down, and again on the way up.
        data_std: Standard deviation of the images about their mean image, in [-1, 1].
        timesteps: T of the noise schedule.
        positions: Whether the network has a position prior, so that it can be used on its own. If
            false, it is one of the :class:`~.experts.NoiseExperts`.
        num_labels: L, the size of the vocabulary.
        num_colors: As :class:`~.uvit.UViT`.
        preconditioning: Whether the output is an estimate of x_0.
        headings: Whether it takes the headings of objects, and positions finer than a pixel; needs
            ``positions``.

    Raises:
        ValueError: An argument has a wrong type, is out of range, or contradicts another.
    """

    takes_positions = True
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
        num_labels: int = NUM_LABELS,
        num_colors: int | None = None,
        preconditioning: bool = True,
        headings: bool = False,
    ) -> None:
        super().__init__()
        check_bool("positions", positions)
        check_bool("headings", headings)
        if headings and not positions:
            raise ValueError("headings need positions=true")
        check_bool("preconditioning", preconditioning)
        check_int("image_size", image_size, MOST["image_size"])
        check_int("timesteps", timesteps, MOST["timesteps"])
        colors = default_colors(num_labels) if num_colors is None else num_colors
        check_vocabulary(num_labels, colors)
        check_level_lists("channels", channels, "blocks", blocks, MOST["levels"])
        for name, counts in (("channels", channels), ("blocks", blocks)):
            for count in counts:
                check_int(f"{name}: each", count, MOST[name])
        check_positive("data_std", data_std)
        check_divisible(image_size, 1, len(channels), len(channels) - 1)
        self.image_size, self.data_std = image_size, data_std
        self.num_labels, self.num_colors = num_labels, colors
        self.dimensions = 4 if headings else 2  # of positions
        self.estimates_x0 = preconditioning
        self.crop_multiple = 2 ** (len(channels) - 1)
        # image, mean image, coordinates, label maps of two widths
        input_channels = 3 + 3 + 2 + 2 * (colors + num_labels // colors + 2 * headings)
        self.layout = Layout(image_size, num_labels if headings else None) if positions else None
        self.register_buffer("mean_frame", torch.zeros(3, image_size, image_size))
        self.register_buffer("noise_to_signal", torch.ones(timesteps))
        self.noise_embedding = nn.Sequential(
            nn.Linear(NOISE_CHANNELS, EMBEDDING_CHANNELS),
            nn.SiLU(),
            nn.Linear(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS),
            nn.SiLU(),
        )
        self.conv_in = nn.Conv2d(input_channels, channels[0], 3, padding=1)
        level = partial(Level, condition=EMBEDDING_CHANNELS, by_pixel=True)
        self.down = nn.ModuleList(map(level, channels, blocks))
        self.up = nn.ModuleList(map(level, channels, blocks))
        steps = list(pairwise(channels))
        self.to_coarser = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps)
        self.to_finer = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.norm_out = PixelNorm()
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        set_to_zero(self.conv_out)

    def fit_statistics(self, images: Tensor, noise_to_signal: Tensor) -> None:
        """Set the mean image and the noise levels.

        Args:
            images: Training images, uint8, (N, 3, H, W).
            noise_to_signal: Noise-to-signal ratio of each timestep, (T,).
        """
        total = torch.zeros(self.mean_frame.shape, dtype=torch.float64)
        for some in images.split(IMAGES_AT_ONCE):
            total += some.sum(0, dtype=torch.int64).cpu()
        self.mean_frame.copy_(total / len(images) / 127.5 - 1)
        self.noise_to_signal.copy_(noise_to_signal)

    def with_heading_inputs(self, kernel: Tensor) -> Tensor:
        """Return the first kernel, (C, C_in, 3, 3), with zeros for the inputs of headings."""
        maps = self.num_colors + self.num_labels // self.num_colors
        rest, *each = kernel.split([kernel.shape[1] - 2 * maps, maps, maps], dim=1)
        zeros = kernel.new_zeros(len(kernel), 2, *kernel.shape[2:])
        return torch.cat([rest, *(part for some in each for part in (some, zeros))], dim=1)

    def check_weights(self, timesteps: int) -> None:
        """Check loaded weights against the number of timesteps of the schedule.

        Raises:
            ValueError: The noise levels are of another schedule, not positive or not rising, or the
                density of the position prior is invalid.
        """
        if self.layout is not None:
            self.layout.check()
        if len(self.noise_to_signal) != timesteps:
            raise ValueError("the network was trained with another number of timesteps")
        if self.noise_to_signal.min() <= 0 or (self.noise_to_signal.diff() < 0).any():
            raise ValueError("noise_to_signal must be positive and rise")

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        labels: Tensor,
        positions: Tensor | None = None,
        corner: Tensor | None = None,
    ) -> Tensor:
        """Estimate x_0, or predict what the training objective asks for.

        Args:
            x_t: Noisy images, or crops of them, (B, 3, h, w).
            timesteps: int64, (B,).
            labels: float32, multi-hot, (B, L); a row of zeros is unconditional.
            positions: float32, (B, L, 2), in the whole image; x to the right and y down. (B, L, 4)
                with ``headings``, as :func:`~iclevr_diffusion.data.poses.encode_poses`; without
                them, the last two are ignored.
            corner: Row and column of each crop's first pixel in its image, int64, (B, 2); None for
                whole images.

        Returns:
            float32, (B, 3, h, w).
        """
        assert positions is not None
        sigma = self.noise_to_signal[timesteps].float()
        y, mean, inputs = self.inputs(x_t, sigma, labels, positions, corner)
        output = self.network(inputs, sigma).float()
        if not self.estimates_x0:
            return output
        c_skip, c_out = (c.view(-1, 1, 1, 1) for c in self.output_scales(sigma))
        return mean + c_skip * y + c_out * output

    def output_scales(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out, (B,) each, for noise-to-signal ratios (B,)."""
        variance = sigma.square() + self.data_std**2
        return self.data_std**2 / variance, sigma * self.data_std / variance.sqrt()

    def inputs(
        self,
        x_t: Tensor,
        sigma: Tensor,
        labels: Tensor,
        positions: Tensor,
        corner: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y and the mean image, (B, 3, h, w) each, and the inputs of F, (B, C_in, h, w)."""
        labels, positions = labels.float(), positions[..., : self.dimensions].float()
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
        maps = [
            label_maps_at(labels, positions, down, across, self.num_colors, width)
            for width in (1.0, SHARP)
        ]
        noisy = scale * y if self.estimates_x0 else x_t.float()
        return y, mean, torch.cat([noisy, mean, grid, *maps], dim=1)

    def _rows_and_columns(self, x_t: Tensor, corner: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return each pixel's row and column in its image, int64, (B, h) and (B, w)."""
        if corner is None:
            corner = torch.zeros(x_t.shape[0], 2, dtype=torch.long, device=x_t.device)
        height, width = (torch.arange(n, device=x_t.device) for n in x_t.shape[2:])
        return corner[:, :1] + height, corner[:, 1:] + width

    def network(self, inputs: Tensor, sigma: Tensor) -> Tensor:
        """Evaluate F: (B, C_in, h, w) → (B, 3, h, w), at noise-to-signal ratios (B,)."""
        dtype = self.conv_in.weight.dtype
        condition = self.noise_embedding(noise_features(sigma).to(dtype))
        h = self.conv_in(inputs.to(dtype).contiguous(memory_format=torch.channels_last))
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
        output: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return output

    def crop_flops(self, size: int) -> int:
        """Count the operations of one pass over a crop of size² pixels."""
        return pass_flops(self, size)

    def inner_weights(self) -> list[nn.Parameter]:
        """Return the weight matrices from features to features, for the Muon optimizer."""
        return matrices_but(self, ("conv_in", "conv_out", "embedding"))


def noise_features(sigma: Tensor) -> Tensor:
    """Return ln σ, scaled to about [-1, 1], with its waves of four octaves: (B,) → (B, 9)."""
    level = (sigma.log()[:, None] + 3) / 2
    waves = level * 2.0 ** torch.arange(NOISE_OCTAVES, device=sigma.device) * (math.pi / 2)
    return torch.cat([level, waves.sin(), waves.cos()], dim=1)
