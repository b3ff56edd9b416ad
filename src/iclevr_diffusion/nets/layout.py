"""Where objects stand: drawn before the picture, and told to the network beside the labels.

p(picture | labels) = ∫ p(picture | labels, places) p(places | labels): a network that is told where
each object stands need not settle that while all it sees is noise.

Places are (…, 2), x to the right and y down, in [-1, 1] across the picture.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iclevr_diffusion.labels import COLORS, NUM_LABELS, SHAPES

GRID = 16  # cells of the density, on each side
CLEARANCE = 0.32  # between objects, where there is room; 2 % of the real ones stand closer
CANDIDATES = 64
OCTAVES = 8
PLACE_CHANNELS = 2 + 4 * OCTAVES
PAINTED_CHANNELS = len(COLORS) + len(SHAPES)


class Layout(nn.Module):
    """p(places | labels): one object, any of them, stands where first objects stand.

    The others stand where others do, each clear of those before it, whatever their labels: a
    density over 16×16 cells says where. They stand in the middle of a pixel, as the places do that
    :func:`~iclevr_diffusion.data.places.find_places` tells: a network has seen no others.

    Args:
        image_size: pixels on each side.
    """

    first: Tensor
    density: Tensor

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("density", torch.ones(GRID, GRID))

    def fit(self, labels: Tensor, places: Tensor) -> None:
        """Learn from labels (N, L), multi-hot, and places (N, L, 2), NaN where not known."""
        labels, places = labels.cpu(), places.cpu()
        known = (labels > 0) & places.isfinite().all(-1)
        alone = places[known & (labels.sum(1, keepdim=True) == 1)]
        if len(alone):
            self.first.copy_(alone.mean(0))
        others = places[known & (labels.sum(1, keepdim=True) > 1)]
        others = others[(others - self.first.cpu()).abs().amax(1) > 1e-4]
        if len(others):
            x, y = ((others + 1) / 2 * GRID).long().clamp(0, GRID - 1).unbind(1)
            counts = torch.bincount(y * GRID + x, minlength=GRID * GRID).float()
            self.density.copy_(counts.view(GRID, GRID) / counts.sum())

    def check(self) -> None:
        """Refuse a density from which nothing can be drawn.

        Raises:
            ValueError: it is below zero somewhere, or zero everywhere.
        """
        if self.density.min() < 0 or self.density.sum() <= 0:
            raise ValueError("layout.density is no density: it is negative somewhere, or all zero")

    def draw(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Places (B, L, 2) for labels (B, L), from one generator a picture; 0 where no label is."""
        places = torch.zeros(*labels.shape, 2)
        first, density = self.first.float().cpu(), self.density.float().cpu().flatten()
        for row, mine, generator in zip(labels.cpu(), places, generators, strict=True):
            present = row.nonzero().flatten()
            taken = first[None]
            for number, which in enumerate(torch.randperm(len(present), generator=generator)):
                if number > 0:
                    taken = torch.cat([taken, self._clear(density, taken, generator)])
                mine[present[which]] = taken[-1]
        return places.to(labels.device)

    def _clear(self, density: Tensor, taken: Tensor, generator: torch.Generator) -> Tensor:
        """(1, 2): the first candidate that is clear of those taken, (N, 2), or the clearest."""
        cells = torch.multinomial(density, CANDIDATES, replacement=True, generator=generator)
        within = torch.rand(CANDIDATES, 2, generator=generator)
        corners = torch.stack([cells % GRID, cells // GRID], dim=1)
        pixels = ((corners + within) / GRID * self.image_size).floor()
        candidates = (pixels + 0.5) / self.image_size * 2 - 1
        distances = torch.cdist(candidates, taken).amin(1)
        return candidates[distances.clamp(max=CLEARANCE).argmax()][None]


def with_places(labels: Tensor, places: Tensor) -> Tensor:
    """What a network with places takes for labels, (B, 3 L): the labels, each one's x, its y."""
    return torch.cat([labels, places[..., 0], places[..., 1]], dim=1)


def split_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, L) and places (B, L, 2) of what :func:`with_places` put together.

    Raises:
        ValueError: there are no places in it.
    """
    if labels.shape[1] != 3 * NUM_LABELS:
        raise ValueError(
            f"this network takes labels with places, {3 * NUM_LABELS} numbers a picture,"
            f" not {labels.shape[1]}"
        )
    labels, x, y = labels.chunk(3, dim=1)
    return labels, torch.stack([x, y], dim=-1)


def encoded(places: Tensor) -> Tensor:
    """(…, 2) → (…, 34): the places, and their sines and cosines of eight octaves."""
    octaves = 2.0 ** torch.arange(OCTAVES, device=places.device) * (math.pi / 2)
    waves = (places[..., None] * octaves).flatten(-2)
    return torch.cat([places, waves.sin(), waves.cos()], dim=-1)


def painted(labels: Tensor, places: Tensor, size: int) -> Tensor:
    """(B, 8 + 3, size, size): a soft blob of each object in the map of its colour and its shape.

    Objects further down are nearer, so their blobs are larger, as the real ones' heights are: 8
    pixels at row 16 of 64, 22 at row 48.
    """
    middles = (torch.arange(size, device=places.device) + 0.5) / size * 2 - 1
    return painted_at(labels, places, middles, middles)


def painted_at(
    labels: Tensor, places: Tensor, rows: Tensor, columns: Tensor, width: float = 1.0
) -> Tensor:
    """The maps of :func:`painted` at some rows and columns of the picture: (B, 8 + 3, h, w).

    Args:
        labels: (B, L), multi-hot.
        places: (B, L, 2).
        rows, columns: of the pixels' middles, in [-1, 1]: (h,) and (w,), or (B, 1, h) and
            (B, 1, w) where each picture has its own.
        width: of the blobs, as a share of the usual one.
    """
    spread = (0.14 + 0.13 * places[..., 1:]).clamp(min=0.08)  # 0.3 of an object's height
    if width != 1:
        spread = width * spread
    across = torch.exp(-0.5 * ((columns - places[..., :1]) / (0.75 * spread)).square())
    down = torch.exp(-0.5 * ((rows - places[..., 1:]) / spread).square())
    blobs = (down * labels[..., None])[..., :, None] * across[..., None, :]
    shapes_by_colors = blobs.unflatten(1, (len(SHAPES), len(COLORS)))
    return torch.cat([shapes_by_colors.sum(1), shapes_by_colors.sum(2)], dim=1)
