"""The conditional UNet: diffusers' UNet2DModel with labels, and with pixel-unshuffle if wanted."""

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, cat, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.checks import (
    check_lists_of_levels,
    check_multiple,
    check_whole,
    check_wholes,
)
from iclevr_diffusion.utils.weights import matrices_but

LABEL_MODES = ("embedding", "concat", "none")
MOST = {  # what no image of this project needs; a stranger's weights may ask for anything
    "image_size": 1024,
    "levels": 16,
    "channels": 8192,
    "layers_per_block": 64,
    "head_dim": 8192,
    "patch_size": 64,
    "norm_groups": 8192,
}


class ConditionalUNet(ModelMixin, ConfigMixin):
    """``net(x_t, timesteps, labels)`` → output, (B, 3, H, W) in, (B, 3, H, W) out.

    ``save_pretrained`` and ``from_pretrained`` keep every setting and every weight, the label
    embedding included.

    Args:
        image_size: H = W in pixels.
        labels: how labels enter. ``embedding``: a linear map of the multi-hot vector, added to
            the time embedding. ``concat``: the vector spread over three extra input channels.
            ``none``: not at all.
        block_out_channels: channels of each level, from the finest to the coarsest.
        attention: for each level, whether its blocks attend.
        mid_attention: whether the middle attends.
        layers_per_block: residual blocks a level on the way down (one more on the way up).
        head_dim: channels of one attention head.
        scale_shift: time and labels scale and shift the normalised features (FiLM) instead of
            being added to them.
        patch_size: pixel-unshuffle factor. The network works on (3 p², H/p, W/p).
        norm_groups: groups of the group norms.
        dropout: in the residual blocks.

    Raises:
        ValueError: settings of a wrong type, out of range, or that contradict one another.
    """

    condition_size = NUM_LABELS  # how many numbers an image it takes for labels

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        image_size: int = 64,
        labels: str = "embedding",
        block_out_channels: Sequence[int] = (128, 128, 256, 256, 512, 512),
        attention: Sequence[bool] = (False, False, False, False, True, False),
        mid_attention: bool = True,
        layers_per_block: int = 2,
        head_dim: int = 8,
        scale_shift: bool = False,
        patch_size: int = 1,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_wholes(
            {
                "data.image_size": image_size,
                "net.layers_per_block": layers_per_block,
                "net.head_dim": head_dim,
                "net.patch_size": patch_size,
                "net.norm_groups": norm_groups,
            },
            MOST,
        )
        _check_levels(block_out_channels, attention)
        for name, value in (("mid_attention", mid_attention), ("scale_shift", scale_shift)):
            if not isinstance(value, bool):
                raise ValueError(f"net.{name} must be true or false, got {value!r:.60}")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"net.dropout must be in [0, 1), got {dropout!r:.60}")
        attends = mid_attention or any(attention)
        _check_together(
            image_size, labels, block_out_channels, patch_size, norm_groups,
            head_dim if attends else 1,
        )  # fmt: skip
        self.labels = labels
        self.patch_size = patch_size
        image_channels = 3 + (3 if labels == "concat" else 0)
        # Here, since it brings in torchvision and transformers, which no other network needs.
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=image_size // patch_size,
            in_channels=image_channels * patch_size**2,
            out_channels=3 * patch_size**2,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple(_block("Down", attend) for attend in attention),
            up_block_types=tuple(_block("Up", attend) for attend in reversed(attention)),
            add_attention=mid_attention,
            layers_per_block=layers_per_block,
            attention_head_dim=head_dim,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            norm_num_groups=norm_groups,
            dropout=dropout,
            # diffusers rejects multi-hot vectors as classes: embed them here, hand it the result.
            class_embed_type="identity" if labels == "embedding" else None,
        )
        if labels == "embedding":
            self.label_embedding = nn.Linear(NUM_LABELS, 4 * block_out_channels[0])

    def forward(self, x_t: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """One pass.

        Args:
            x_t: (B, 3, H, W), noisy images.
            timesteps: int64, (B,).
            labels: float32, (B, L), multi-hot; a row of zeros asks for no labels in particular.
        """
        embedding = self.label_embedding(labels) if self.labels == "embedding" else None
        if self.labels == "concat":
            x_t = cat([x_t, spread_labels(labels, x_t.shape[-1]).to(x_t.dtype)], dim=1)
        x_t = F.pixel_unshuffle(x_t, self.patch_size)
        output = self.unet(x_t, timesteps, embedding, return_dict=False)[0]
        return F.pixel_shuffle(output, self.patch_size)

    def inner_weights(self) -> list[nn.Parameter]:
        """The weights of convolutions and linear maps from features to features.

        Left out are those that read images, times or labels, and those that put out images.
        """
        return matrices_but(self, ("conv_in", "conv_out", "time_emb", "label_embedding"))


def spread_labels(labels: Tensor, size: int) -> Tensor:
    """Three channels that show a multi-hot vector as vertical stripes: (B, L) → (B, 3, size, size).

    Each entry is a stripe size // L pixels wide (2 of 64); the rest is zero.
    """
    width = size // labels.shape[1]
    stripes = F.pad(labels.repeat_interleave(width, dim=1), (0, size - width * labels.shape[1]))
    return stripes[:, None, None, :].expand(-1, 3, size, -1)


def _block(direction: str, attend: bool) -> str:
    return f"{'Attn' if attend else ''}{direction}Block2D"


def _check_levels(channels: Sequence[int], attention: Sequence[bool]) -> None:
    check_lists_of_levels(
        "net.block_out_channels", channels, "net.attention", attention, MOST["levels"]
    )
    for count in channels:
        check_whole("net.block_out_channels: each", count, MOST["channels"])
    if not all(isinstance(attends, bool) for attends in attention):
        raise ValueError(f"net.attention must be true or false each, got {attention!r:.60}")


def _check_together(
    image_size: int,
    labels: str,
    channels: Sequence[int],
    patch_size: int,
    norm_groups: int,
    head_dim: int,
) -> None:
    """Raise ValueError, in the words of the config, where settings contradict one another."""
    if labels not in LABEL_MODES:
        raise ValueError(f"net.labels must be one of {', '.join(LABEL_MODES)}; got {labels!r:.60}")
    check_multiple(image_size, patch_size, len(channels), len(channels) - 1)
    if labels == "concat" and image_size < NUM_LABELS:
        raise ValueError(f"net.labels=concat needs data.image_size of {NUM_LABELS} or more")
    for count in channels:
        if count % norm_groups or count % head_dim:
            raise ValueError(
                f"net.block_out_channels={list(channels)} must be multiples of"
                f" net.norm_groups={norm_groups} and, with attention, of net.head_dim={head_dim}"
            )
