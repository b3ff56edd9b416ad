"""A U-ViT: convolutions at high resolution, a transformer at low resolution."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.blocks import GROUP_CHANNELS, Level, group_norm
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.models.position_features import (
    POSITION_CHANNELS,
    color_and_shape_counts,
    default_colors,
    encode_positions,
    label_maps,
)
from iclevr_diffusion.models.uvit_blocks import TransformerBlock, is_autocast_on, no_float16
from iclevr_diffusion.utils.checks import (
    check_bool,
    check_divisible,
    check_int,
    check_ints,
    check_level_lists,
    check_vocabulary,
)
from iclevr_diffusion.utils.weights import matrices_but

MOST = {  # the largest values accepted, since weights files may ask for anything
    "image_size": 1024,
    "levels": 8,
    "channels": 4096,
    "blocks": 64,
    "width": 4096,
    "depth": 64,
    "head_dim": 4096,
    "patch_size": 64,
    "tokens": 4096,
}
TIME_CHANNELS = 128


class UViT(ModelMixin, ConfigMixin):
    """A U-ViT conditioned on labels, and optionally on positions.

    After Hoogeboom et al. 2023, arXiv 2301.11093: most of the computation is done at the lowest
    resolution, where it is cheapest. The differences: labels are also described by their colors
    and shapes (:func:`describe`), each label is also a token that the image tokens attend to, the
    transformer blocks are gated by the condition (adaLN-Zero), and pixel coordinates are an input.
    With ``positions``, label maps are another input, and the label tokens carry positions.

    Args:
        image_size: H = W in pixels.
        channels: Channels of each convolutional level, from the finest to the coarsest; each level
            halves H and W.
        blocks: Residual blocks of each level on the way down, and again on the way up.
        width: Channels of the transformer, after the last level.
        depth: Blocks of the transformer.
        head_dim: Channels of one attention head.
        object_tokens: Number of label tokens. Unused ones hold zeros; the labels that exceed the
            number have no token, but scale and shift the features like all others.
        patch_size: Pixel-unshuffle factor of the first level.
        positions: Whether the network takes positions.
        num_labels: L, the size of the vocabulary.
        num_colors: Colors of the vocabulary, whose labels are ordered shape by shape; None for
            8 with i-CLEVR's 24 labels, else ``num_labels`` (no shapes).

    Raises:
        ValueError: An argument has a wrong type, is out of range, or contradicts another.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        image_size: int = 64,
        channels: Sequence[int] = (32, 64),
        blocks: Sequence[int] = (1, 2),
        width: int = 192,
        depth: int = 4,
        head_dim: int = 32,
        object_tokens: int = 6,
        patch_size: int = 2,
        positions: bool = False,
        num_labels: int = NUM_LABELS,
        num_colors: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "width": width, "depth": depth}
        check_ints(sizes | {"head_dim": head_dim, "patch_size": patch_size}, MOST)
        colors = default_colors(num_labels) if num_colors is None else num_colors
        check_vocabulary(num_labels, colors)
        check_int("object_tokens", object_tokens, num_labels)
        check_level_lists("channels", channels, "blocks", blocks, MOST["levels"])
        _check_levels(channels, blocks)
        check_divisible(image_size, patch_size, len(channels), len(channels))
        if width % head_dim:
            raise ValueError(f"width={width} must be a multiple of head_dim={head_dim}")
        check_bool("positions", positions)
        self.num_labels, self.num_colors = num_labels, colors
        self.patch_size, self.object_tokens = patch_size, object_tokens
        self.takes_positions = positions
        self.layout = Layout(image_size) if positions else None
        size = image_size // patch_size
        map_channels = colors + num_labels // colors
        described = num_labels + map_channels
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_CHANNELS, width)
        self.label_embedding = nn.Linear(described, width)
        channels_in = 3 * patch_size**2 + 2 + (map_channels if positions else 0)
        self.conv_in = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        levels = list(zip(channels, blocks, strict=True))
        steps = list(pairwise([*channels, width]))
        self.down = nn.ModuleList(Level(*level, width) for level in levels)
        self.to_coarser = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps)
        tokens = (size // 2 ** len(channels)) ** 2
        check_int("the number of image tokens", tokens, MOST["tokens"])
        self.position_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.object_token_embedding = nn.Linear(described, width)
        self.object_position_embedding = nn.Linear(POSITION_CHANNELS, width) if positions else None
        self.transformer = nn.ModuleList(TransformerBlock(width, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_finer = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(Level(*level, width) for level in levels)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Initialize label embeddings to the scale of the time embedding."""
        nn.init.normal_(self.position_embedding, std=0.3)
        share = 1 / math.sqrt(3)  # label, color and shape add up to a variance of 1
        nn.init.normal_(self.label_embedding.weight, std=share)
        nn.init.normal_(self.object_token_embedding.weight, std=share)
        nn.init.normal_(self.object_token_embedding.bias)

    def forward(
        self, x_t: Tensor, timesteps: Tensor, labels: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """As :meth:`.protocol.DenoisingNetwork.__call__`."""
        time = self.time_proj(timesteps).to(x_t.dtype)
        label_embedding = self.label_embedding(describe(labels, self.num_colors))
        condition = F.silu(self.time_embedding(time) + label_embedding)
        h = F.pixel_unshuffle(x_t, self.patch_size)
        inputs = [h, _coordinates(h)]
        if self.takes_positions:
            assert positions is not None
            inputs.append(label_maps(labels, positions, h.shape[-1], self.num_colors).to(h.dtype))
        h = self.conv_in(torch.cat(inputs, dim=1))
        skips = []
        for level, to_coarser in zip(self.down, self.to_coarser, strict=True):
            h = level(h, condition)
            skips.append(h)
            h = to_coarser(F.pixel_unshuffle(h, 2))
        h = self._transform(h, labels, positions, condition)
        with no_float16(h.device.type):
            output = self._ascend(h, skips, condition)
        return F.pixel_shuffle(output, self.patch_size)

    def _ascend(self, h: Tensor, skips: list[Tensor], condition: Tensor) -> Tensor:
        """Run the way up: (B, width, h, w) → (B, 3 patch_size², H, W), before the pixel shuffle.

        Trained features exceed the range of float16 (65504) here, as they are not normalized
        before the end.
        """
        if not is_autocast_on(h.device.type):
            dtype = self.conv_out.weight.dtype
            h, condition, *skips = (tensor.to(dtype) for tensor in (h, condition, *skips))
        for level, to_finer, skip in zip(
            reversed(self.up), reversed(self.to_finer), reversed(skips), strict=True
        ):
            h = level(skip + F.pixel_shuffle(to_finer(h), 2), condition)
        output: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return output

    def _transform(
        self, h: Tensor, labels: Tensor, positions: Tensor | None, condition: Tensor
    ) -> Tensor:
        """Run the transformer over the image's and the labels' tokens; keeps (B, width, h, w)."""
        count = h.shape[2] * h.shape[3]
        tokens = h.flatten(2).transpose(1, 2) + self.position_embedding
        objects = split_labels(labels, self.object_tokens)
        object_tokens = self.object_token_embedding(describe(objects, self.num_colors))
        if self.object_position_embedding is not None and positions is not None:
            present = objects.sum(2, keepdim=True).clamp(max=1)
            encoded = encode_positions(objects.clamp(max=1) @ positions) * present
            encoded = encoded.to(self.object_position_embedding.weight.dtype)
            object_tokens = object_tokens + self.object_position_embedding(encoded)
        tokens = torch.cat([tokens, object_tokens.to(tokens.dtype)], dim=1)
        for block in self.transformer:
            tokens = block(tokens, condition)
        result: Tensor = self.norm(tokens[:, :count]).transpose(1, 2).reshape(h.shape)
        return result

    def check_weights(self, timesteps: int) -> None:
        """Check the position prior of loaded weights, if there is one.

        Raises:
            ValueError: Its density is invalid.
        """
        if self.layout is not None:
            self.layout.check()

    def inner_weights(self) -> list[nn.Parameter]:
        """Return the weight matrices from features to features, for the Muon optimizer.

        Excluded are those with images, positions, times or labels as input, or images as output.
        """
        return matrices_but(self, ("conv_in", "conv_out", "embedding"))


def describe(labels: Tensor, num_colors: int) -> Tensor:
    """Append the number of objects of each color and each shape: (…, L) → (…, L + C + L / C).

    So what is learned about a red cube also helps with a red sphere.
    """
    return torch.cat([labels, *color_and_shape_counts(labels, num_colors)], dim=-1)


def split_labels(labels: Tensor, count: int) -> Tensor:
    """Split multi-hot labels into rows of one label each: (B, L) → (B, count, L).

    Rows for labels that an image does not have are zero.
    """
    present, index = labels.sort(dim=1, descending=True, stable=True)
    return F.one_hot(index[:, :count], labels.shape[1]) * present[:, :count, None]


def _coordinates(h: Tensor) -> Tensor:
    """Return pixel coordinates, (B, 2, h, w): rows from the top, columns from the left, in [-1, 1].

    After CoordConv, Liu et al. 2018, arXiv 1807.03247.
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=h.dtype, device=h.device) for n in h.shape[2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(h.shape[0], -1, -1, -1)


def _check_levels(channels: Sequence[int], blocks: Sequence[int]) -> None:
    for count in channels:
        check_int("channels: each", count, MOST["channels"])
        if count > GROUP_CHANNELS and count % GROUP_CHANNELS:
            raise ValueError(
                f"channels={list(channels)} must be multiples of {GROUP_CHANNELS}, or fewer"
            )
    for count in blocks:
        check_int("blocks: each", count, MOST["blocks"])
