"""A conditional UNet: diffusers' UNet2DModel with labels and optional pixel-unshuffle."""

from collections.abc import Sequence

import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, cat, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.utils.checks import (
    check_bool,
    check_choice,
    check_divisible,
    check_int,
    check_ints,
    check_level_lists,
    check_vocabulary,
)
from iclevr_diffusion.utils.weights import matrices_but

LABEL_MODES = ("embedding", "concat", "none")
MOST = {  # the largest values accepted, since weights files may ask for anything
    "image_size": 1024,
    "levels": 16,
    "channels": 8192,
    "layers_per_block": 64,
    "head_dim": 8192,
    "patch_size": 64,
    "norm_groups": 8192,
}


class ConditionalUNet(ModelMixin, ConfigMixin):
    """A UNet that is conditioned on labels; a :class:`~.protocol.DenoisingNetwork`.

    Args:
        image_size: H = W in pixels.
        labels: The way labels enter. ``embedding``: a linear map of the multi-hot vector, added to
            the time embedding. ``concat``: the vector as three extra input channels
            (:func:`label_stripes`). ``none``: not at all.
        block_out_channels: Channels of each level, from the finest to the coarsest.
        attention: For each level, whether its blocks have attention.
        mid_attention: Whether the middle block has attention.
        layers_per_block: Residual blocks per level on the way down (one more on the way up).
        head_dim: Channels of one attention head.
        scale_shift: Whether time and labels scale and shift the normalized features (FiLM) instead
            of being added to them.
        patch_size: Pixel-unshuffle factor p. The network works on (3 p², H/p, W/p).
        norm_groups: Groups of the group norms.
        dropout: Dropout probability in the residual blocks.
        num_labels: L, the size of the vocabulary.

    Raises:
        ValueError: An argument has a wrong type, is out of range, or contradicts another.
    """

    takes_positions = False

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
        num_labels: int = NUM_LABELS,
    ) -> None:
        super().__init__()
        check_ints(
            {
                "image_size": image_size,
                "layers_per_block": layers_per_block,
                "head_dim": head_dim,
                "patch_size": patch_size,
                "norm_groups": norm_groups,
            },
            MOST,
        )
        check_vocabulary(num_labels, num_labels)
        _check_levels(block_out_channels, attention)
        check_bool("mid_attention", mid_attention)
        check_bool("scale_shift", scale_shift)
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r:.60}")
        check_choice("labels", labels, LABEL_MODES)
        if labels == "concat" and image_size < num_labels:
            raise ValueError(f"labels=concat needs an image_size of {num_labels} or more")
        levels = len(block_out_channels)
        check_divisible(image_size, patch_size, levels, levels - 1)
        has_attention = mid_attention or any(attention)
        _check_channels(block_out_channels, norm_groups, head_dim if has_attention else 1)
        self.num_labels = num_labels
        self.labels = labels
        self.patch_size = patch_size
        image_channels = 3 + (3 if labels == "concat" else 0)
        # Imported here, since it imports torchvision and transformers, which nothing else needs.
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=image_size // patch_size,
            in_channels=image_channels * patch_size**2,
            out_channels=3 * patch_size**2,
            block_out_channels=tuple(block_out_channels),
            down_block_types=tuple(_block("Down", entry) for entry in attention),
            up_block_types=tuple(_block("Up", entry) for entry in reversed(attention)),
            add_attention=mid_attention,
            layers_per_block=layers_per_block,
            attention_head_dim=head_dim,
            resnet_time_scale_shift="scale_shift" if scale_shift else "default",
            norm_num_groups=norm_groups,
            dropout=dropout,
            # diffusers rejects multi-hot vectors as classes, so they are embedded below.
            class_embed_type="identity" if labels == "embedding" else None,
        )
        if labels == "embedding":
            self.label_embedding = nn.Linear(num_labels, 4 * block_out_channels[0])

    def forward(
        self, x_t: Tensor, timesteps: Tensor, labels: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """As :meth:`.protocol.DenoisingNetwork.__call__`; ``positions`` are not used."""
        embedding = self.label_embedding(labels) if self.labels == "embedding" else None
        if self.labels == "concat":
            x_t = cat([x_t, label_stripes(labels, x_t.shape[-1]).to(x_t.dtype)], dim=1)
        x_t = F.pixel_unshuffle(x_t, self.patch_size)
        output = self.unet(x_t, timesteps, embedding, return_dict=False)[0]
        return F.pixel_shuffle(output, self.patch_size)

    def inner_weights(self) -> list[nn.Parameter]:
        """Return the weight matrices from features to features, for the Muon optimizer.

        Excluded are those with images, times or labels as input, or images as output.
        """
        return matrices_but(self, ("conv_in", "conv_out", "time_emb", "label_embedding"))


def label_stripes(labels: Tensor, size: int) -> Tensor:
    """Render a multi-hot vector as vertical stripes in three channels: (B, L) → (B, 3, size, size).

    Each entry is a stripe of size // L pixels (2 of 64); the remaining columns are zero.
    """
    width = size // labels.shape[1]
    stripes = F.pad(labels.repeat_interleave(width, dim=1), (0, size - width * labels.shape[1]))
    return stripes[:, None, None, :].expand(-1, 3, size, -1)


def _block(direction: str, attention: bool) -> str:
    return f"{'Attn' if attention else ''}{direction}Block2D"


def _check_levels(channels: Sequence[int], attention: Sequence[bool]) -> None:
    check_level_lists("block_out_channels", channels, "attention", attention, MOST["levels"])
    for count in channels:
        check_int("block_out_channels: each", count, MOST["channels"])
    if not all(isinstance(entry, bool) for entry in attention):
        raise ValueError(f"attention must be true or false each, got {attention!r:.60}")


def _check_channels(channels: Sequence[int], norm_groups: int, head_dim: int) -> None:
    for count in channels:
        if count % norm_groups or count % head_dim:
            raise ValueError(
                f"block_out_channels={list(channels)} must be multiples of"
                f" norm_groups={norm_groups} and, with attention, of head_dim={head_dim}"
            )
