"""A U-ViT: convolutions where the image is fine, a transformer where it is coarse."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS, SHAPES
from iclevr_diffusion.models.checks import (
    check_lists_of_levels,
    check_multiple,
    check_whole,
    check_wholes,
)
from iclevr_diffusion.models.layout import (
    PAINTED_CHANNELS,
    POSITION_CHANNELS,
    Layout,
    TakesPositions,
    encoded,
    painted,
    split_positions,
)
from iclevr_diffusion.utils.weights import matrices_but

MOST = {  # what no image of this project needs; a stranger's weights may ask for anything
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
GROUP_CHANNELS = 16  # of a group norm's group, where there are as many
TIME_CHANNELS = 128
NUM_DESCRIBED = NUM_LABELS + len(COLORS) + len(SHAPES)


class UViT(TakesPositions, ModelMixin, ConfigMixin):
    """``net(x_t, timesteps, labels)`` → output, (B, 3, H, W) in, (B, 3, H, W) out.

    After the U-ViT of Hoogeboom et al. 2023, arXiv 2301.11093: most of the work is done where a
    position costs least. What differs: the labels are read as colours and shapes too
    (:func:`described`), each of them is also a token that the image's positions attend to, the
    transformer's blocks are gated by the condition, and the network is told where each pixel is.
    With ``positions`` it is also told where each object stands: it draws a layout first
    (:class:`~.layout.Layout`), and then the image with the objects there.

    ``save_pretrained`` and ``from_pretrained`` keep every setting and every weight.

    Args:
        image_size: H = W in pixels.
        channels: of each convolutional level, from the finest to the coarsest; each halves H and W.
        blocks: residual blocks of each level on the way down, and again on the way up.
        width: channels of the transformer, after the last level.
        depth: blocks of the transformer.
        head_dim: channels of one attention head.
        object_tokens: tokens of one label each, for that many labels of an image: where it has
            fewer the rest say so, of more the first ones get a token, and all scale and shift.
        patch_size: pixel-unshuffle factor of the first level.
        positions: whether it takes each object's position beside the labels.

    Raises:
        ValueError: settings of a wrong type, out of range, or that contradict one another.
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
    ) -> None:
        super().__init__()
        check_wholes(
            {
                "data.image_size": image_size,
                "net.width": width,
                "net.depth": depth,
                "net.head_dim": head_dim,
                "net.patch_size": patch_size,
            },
            MOST,
        )
        check_whole("net.object_tokens", object_tokens, NUM_LABELS)
        check_lists_of_levels("net.channels", channels, "net.blocks", blocks, MOST["levels"])
        _check_levels(channels, blocks)
        check_multiple(image_size, patch_size, len(channels), len(channels))
        if width % head_dim:
            raise ValueError(f"net.width={width} must be a multiple of net.head_dim={head_dim}")
        if type(positions) is not bool:
            raise ValueError(f"net.positions must be true or false, got {positions!r:.60}")
        self.patch_size, self.object_tokens = patch_size, object_tokens
        self.layout = Layout(image_size) if positions else None
        size = image_size // patch_size
        self.time_proj = Timesteps(TIME_CHANNELS, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_CHANNELS, width)
        self.label_embedding = nn.Linear(NUM_DESCRIBED, width)
        channels_in = 3 * patch_size**2 + 2 + (PAINTED_CHANNELS if positions else 0)
        self.conv_in = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        levels = list(zip(channels, blocks, strict=True))
        steps = list(pairwise([*channels, width]))
        self.down = nn.ModuleList(Level(*level, width) for level in levels)
        self.to_coarser = nn.ModuleList(nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in steps)
        tokens = (size // 2 ** len(channels)) ** 2
        check_whole("the number of the transformer's positions", tokens, MOST["tokens"])
        self.position_embedding = nn.Parameter(torch.empty(1, tokens, width))
        self.object_token_embedding = nn.Linear(NUM_DESCRIBED, width)
        self.object_position_embedding = nn.Linear(POSITION_CHANNELS, width) if positions else None
        self.transformer = nn.ModuleList(TransformerBlock(width, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_finer = nn.ModuleList(nn.Conv2d(coarse, 4 * fine, 1) for fine, coarse in steps)
        self.up = nn.ModuleList(Level(*level, width) for level in levels)
        self.norm_out = _group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Labels count from the start, as much as time does."""
        nn.init.normal_(self.position_embedding, std=0.3)
        share = 1 / math.sqrt(3)  # of a label, its colour, its shape: 1 together
        nn.init.normal_(self.label_embedding.weight, std=share)
        nn.init.normal_(self.object_token_embedding.weight, std=share)
        nn.init.normal_(self.object_token_embedding.bias)

    def forward(self, x_t: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """One pass.

        Args:
            x_t: (B, 3, H, W), noisy images.
            timesteps: int64, (B,).
            labels: float32, multi-hot, (B, L), or with positions (B, 3 L) as :meth:`placed` gives
                them; a row of zeros asks for no labels in particular.
        """
        positions = None
        if self.layout is not None:
            labels, positions = split_positions(labels)
        time = self.time_proj(timesteps).to(x_t.dtype)
        condition = F.silu(self.time_embedding(time) + self.label_embedding(described(labels)))
        h = F.pixel_unshuffle(x_t, self.patch_size)
        inputs = [h, _coordinates(h)]
        if positions is not None:
            inputs.append(painted(labels, positions, h.shape[-1]).to(h.dtype))
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
        """The way up: (B, width, h, w) → (B, 3 patch_size², H, W), before the pixel shuffle.

        Trained features exceed the range of float16 here (65504): nothing normalises them before
        the end.
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
        """The transformer over all positions and the labels' tokens; (B, width, h, w), as given."""
        count = h.shape[2] * h.shape[3]
        tokens = h.flatten(2).transpose(1, 2) + self.position_embedding
        objects = one_by_one(labels, self.object_tokens)
        of_objects = self.object_token_embedding(described(objects))
        if self.object_position_embedding is not None and positions is not None:
            present = objects.sum(2, keepdim=True).clamp(max=1)
            where = objects.clamp(max=1) @ positions
            of_objects = of_objects + self.object_position_embedding(encoded(where) * present)
        tokens = torch.cat([tokens, of_objects.to(tokens.dtype)], dim=1)
        for block in self.transformer:
            tokens = block(tokens, condition)
        result: Tensor = self.norm(tokens[:, :count]).transpose(1, 2).reshape(h.shape)
        return result

    def inner_weights(self) -> list[nn.Parameter]:
        """The weights of convolutions and linear maps from features to features.

        Left out are those that read images, positions, times or labels, and that put out images.
        """
        return matrices_but(self, ("conv_in", "conv_out", "embedding"))


def described(labels: Tensor) -> Tensor:
    """(…, L), multi-hot → (…, L + 8 + 3): the labels, how many of each colour, of each shape.

    So what is learned of a red cube helps with a red sphere.
    """
    shapes_by_colors = labels.unflatten(-1, (len(SHAPES), len(COLORS)))
    return torch.cat([labels, shapes_by_colors.sum(-2), shapes_by_colors.sum(-1)], dim=-1)


def one_by_one(labels: Tensor, count: int) -> Tensor:
    """(B, L), multi-hot → (B, count, L): a row for each of the first labels, then rows of zeros."""
    present, index = labels.sort(dim=1, descending=True, stable=True)
    return F.one_hot(index[:, :count], NUM_LABELS) * present[:, :count, None]


class ResidualBlock(nn.Module):
    """Two convolutions; the condition scales and shifts between them (FiLM).

    It begins as the identity.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = _group_norm(channels, affine=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        _set_to_zero(self.conv2)
        _set_to_zero(self.film)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, C, H, W); condition: (B, width)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        result: Tensor = x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))
        return result


class Level(nn.Module):
    """Residual blocks of one size, one after the other."""

    def __init__(self, channels: int, count: int, condition: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(channels, condition) for _ in range(count))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As :meth:`ResidualBlock.forward`."""
        for block in self.blocks:
            x = block(x, condition)
        return x


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each scaled, shifted and gated by the condition.

    The "adaLN-Zero" of Peebles & Xie 2022, arXiv 2212.09748, section 3.2: it begins as identity.
    Queries and keys are normalised, as in Dehghani et al. 2023, arXiv 2302.05442, section 2, but to
    a root mean square of 1 and with no gain: no logit exceeds √head_dim.
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        _set_to_zero(self.modulation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, N, width); condition: (B, width)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(
            6, dim=-1
        )
        x = torch.addcmul(x, self._attend(torch.addcmul(shift1, self.norm1(x), 1 + scale1)), gate1)
        h = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh")), gate2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        heads = self.qkv(x).view(batch, count, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        query, key = F.rms_norm(query, query.shape[-1:]), F.rms_norm(key, key.shape[-1:])
        attended = _attention(query, key, value)
        result: Tensor = self.attention_out(attended.transpose(1, 2).reshape(batch, count, width))
        return result


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on; device types without any, such as "meta", are allowed."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def no_float16(device_type: str) -> AbstractContextManager[Any]:
    """Autocast turned off where it is to float16, and left as it is where it is not."""
    if is_autocast_on(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, N, head_dim).

    On processors PyTorch's own kernel takes several times as long to go backward as two products.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    logits = query * query.shape[-1] ** -0.5 @ key.mT
    result: Tensor = logits.softmax(-1).to(value.dtype) @ value
    return result


def _set_to_zero(layer: nn.Module) -> None:
    for weight in layer.parameters():
        nn.init.zeros_(weight)


def _coordinates(h: Tensor) -> Tensor:
    """(B, 2, h, w): rows from -1 at the top to 1, columns from -1 at the left.

    The CoordConv of Liu et al. 2018, arXiv 1807.03247.
    """
    rows, columns = (torch.linspace(-1, 1, n, dtype=h.dtype, device=h.device) for n in h.shape[2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid.expand(len(h), -1, -1, -1)


def _group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // GROUP_CHANNELS), channels, affine=affine)


def _check_levels(channels: Sequence[int], blocks: Sequence[int]) -> None:
    for count in channels:
        check_whole("net.channels: each", count, MOST["channels"])
        if count > GROUP_CHANNELS and count % GROUP_CHANNELS:
            raise ValueError(
                f"net.channels={list(channels)} must be multiples of {GROUP_CHANNELS}, or fewer"
            )
    for count in blocks:
        check_whole("net.blocks: each", count, MOST["blocks"])
