"""Features of labels and positions that networks take as inputs.

The labels of a vocabulary are ordered shape by shape, with the colors of each in the same order:
label i has color i mod C and shape i // C, for C colors.
"""

import math

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS

OCTAVES = 8
POSITION_CHANNELS = 2 + 4 * OCTAVES


def default_colors(num_labels: int) -> int:
    """Return the number of colors of a vocabulary: i-CLEVR's 8 for its 24 labels, else all labels.

    With as many colors as labels there is one shape: the labels are not factorized.
    """
    return len(COLORS) if num_labels == NUM_LABELS else num_labels


def color_and_shape_counts(labels: Tensor, num_colors: int) -> tuple[Tensor, Tensor]:
    """Count the objects of each color and of each shape: (…, L) → (…, C) and (…, L / C)."""
    shapes_by_colors = labels.unflatten(-1, (-1, num_colors))
    return shapes_by_colors.sum(-2), shapes_by_colors.sum(-1)


def encode_positions(positions: Tensor) -> Tensor:
    """Append sines and cosines of eight octaves to positions: (…, 2) → (…, 34)."""
    octaves = 2.0 ** torch.arange(OCTAVES, device=positions.device) * (math.pi / 2)
    waves = (positions[..., None] * octaves).flatten(-2)
    return torch.cat([positions, waves.sin(), waves.cos()], dim=-1)


def label_maps(labels: Tensor, positions: Tensor, size: int, num_colors: int) -> Tensor:
    """Render a Gaussian blob of each object into the map of its color and the map of its shape.

    Objects further down are nearer to the camera, so their blobs are larger, as the objects'
    heights are in real images: 8 pixels at row 16 of 64, 22 at row 48.

    Returns:
        (B, C + L / C, size, size).
    """
    centers = (torch.arange(size, device=positions.device) + 0.5) / size * 2 - 1
    return label_maps_at(labels, positions, centers, centers, num_colors)


def label_maps_at(
    labels: Tensor,
    positions: Tensor,
    rows: Tensor,
    columns: Tensor,
    num_colors: int,
    width: float = 1.0,
) -> Tensor:
    """Render :func:`label_maps` at some rows and columns of the image, and maps of headings.

    Args:
        labels: (B, L), multi-hot.
        positions: (B, L, 2); or (B, L, 4): x, y, and the cosine and sine of four times the heading,
            as :func:`~iclevr_diffusion.data.poses.encode_poses`; 0, 0 for objects without one.
        rows: Centers of the pixels' rows, in [-1, 1]: (h,), or (B, 1, h) where images differ.
        columns: Centers of the pixels' columns, likewise: (w,) or (B, 1, w).
        num_colors: C, the number of colors of the vocabulary.
        width: Factor on the usual width of the blobs.

    Returns:
        (B, C + L / C, h, w), and two channels more with headings.
    """
    x, y, headings = positions.split([1, 1, positions.shape[-1] - 2], dim=-1)
    std = (0.14 + 0.13 * y).clamp(min=0.08)  # 0.3 of an object's height
    if width != 1:
        std = width * std
    across = torch.exp(-0.5 * ((columns - x) / (0.75 * std)).square())
    down = torch.exp(-0.5 * ((rows - y) / std).square())
    blobs = (down * labels[..., None])[..., :, None] * across[..., None, :]
    shapes_by_colors = blobs.unflatten(1, (-1, num_colors))
    maps = [shapes_by_colors.sum(1), shapes_by_colors.sum(2)]
    maps += [(blobs * part[..., None, None]).sum(1, keepdim=True) for part in headings.unbind(-1)]
    return torch.cat(maps, dim=1)
