"""Where objects stand: sampled before the image, and given to the network beside the labels.

p(image | labels) = ∫ p(image | labels, positions) p(positions | labels): a network that is told
where each object stands need not settle that while all it sees is noise.

Positions are (…, 2), x to the right and y down, in [-1, 1] across the image.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS, SHAPES
from iclevr_diffusion.data.synthetic import camera

CLEAR, DATA = LAYOUTS = ("clear", "data")
GRID = 16  # cells of the density, on each side
POINTS = 128  # of the density of `data`, on each side
HEIGHT = 0.5  # of an object's position above the floor; fitted to real frames
CLEARANCE = 0.32  # between objects of `clear`, where there is room
CANDIDATES = 64
OCTAVES = 8
POSITION_CHANNELS = 2 + 4 * OCTAVES
PAINTED_CHANNELS = len(COLORS) + len(SHAPES)


class TakesPositions:
    """What every network with a layout, or without one, says of labels and positions.

    layout: where objects stand; None for a network that takes no positions.
    """

    layout: "Layout | None"

    @property
    def condition_size(self) -> int:
        """How many numbers an image the network takes for labels."""
        return NUM_LABELS if self.layout is None else 3 * NUM_LABELS

    def sample_positions(
        self, labels: Tensor, generators: Sequence[torch.Generator], layout: str = CLEAR
    ) -> Tensor | None:
        """As :meth:`Layout.sample`; None without a layout."""
        return None if self.layout is None else self.layout.sample(labels, generators, layout)

    def placed(self, labels: Tensor, positions: Tensor | None) -> Tensor:
        """What the network takes for labels (B, L), and with a layout positions (B, L, 2).

        Raises:
            ValueError: positions of another shape, NaN or outside [-1, 1]; or they are missing, or
                the network takes none.
        """
        if self.layout is None and positions is None:
            return labels
        if self.layout is None:
            raise ValueError("these weights take no positions")
        if positions is None:
            raise ValueError("these weights need a position of each object")
        return with_positions(labels, check_positions(positions, labels).to(labels))

    def check(self) -> None:
        """Refuse weights that nothing can be drawn with.

        Raises:
            ValueError: the layout's density is none.
        """
        if self.layout is not None:
            self.layout.check()


class Layout(nn.Module):
    """p(positions | labels): one object, any of them, stands where first objects stand.

    The others stand where others do in the training frames, whatever their labels: a density over
    16×16 cells says where. There are two ways to sample them:

    ``clear``: at least 0.32 from one another in the image, where there is room, so that each is
    easy to see. Of the pairs in real frames of three objects, 11 % stand closer.

    ``data``: as in the training frames. There objects stand on a square of the floor, at least 2.4
    from one another (:mod:`iclevr_diffusion.data.synthetic.camera`), whatever is left between them
    in the image. Within a cell of the density, positions are uniform over the part of the floor
    that this rule allows. ``benchmarks/layout.py`` compares both layouts with real frames.

    Both need only the buffers ``first`` and ``density``.

    Sampled positions are the middles of pixels, as those are that
    :func:`~iclevr_diffusion.data.positions.find_positions` finds: a network has seen no others.

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

    def fit(self, labels: Tensor, positions: Tensor) -> None:
        """Learn from labels (N, L), multi-hot, and positions (N, L, 2), NaN where not known."""
        labels, positions = labels.cpu(), positions.cpu()
        known = (labels > 0) & positions.isfinite().all(-1)
        alone = positions[known & (labels.sum(1, keepdim=True) == 1)]
        if len(alone):
            self.first.copy_(alone.mean(0))
        others = positions[known & (labels.sum(1, keepdim=True) > 1)]
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

    def sample(
        self, labels: Tensor, generators: Sequence[torch.Generator], layout: str = CLEAR
    ) -> Tensor:
        """Sample where the objects stand.

        Args:
            labels: (B, L), multi-hot.
            generators: B of them on the CPU, one per image.
            layout: ``clear`` or ``data``.

        Returns:
            float32 (B, L, 2), 0 where an image has no such label; on the device of ``labels``.

        Raises:
            ValueError: there is no such layout.
        """
        check_layout(layout)
        next_one = self._clear() if layout == CLEAR else self._as_in_data()
        positions = torch.zeros(*labels.shape, 2)
        for row, mine, generator in zip(labels.cpu(), positions, generators, strict=True):
            present = row.nonzero().flatten()
            taken = self.first.float().cpu()[None]
            for number, which in enumerate(torch.randperm(len(present), generator=generator)):
                if number > 0:
                    taken = torch.cat([taken, next_one(taken, generator)])
                mine[present[which]] = taken[-1]
        return positions.to(labels.device)

    def snap(self, positions: Tensor) -> Tensor:
        """The nearest positions, (…, 2), that frames have: a pixel's middle or the first one."""
        first = self.first.to(positions)
        pixels = self._middles(positions)
        nearer = (positions - first).norm(dim=-1) < (positions - pixels).norm(dim=-1)
        return torch.where(nearer[..., None], first, pixels)

    def _clear(self) -> "NextObject":
        density = self.density.float().cpu().flatten()

        def next_one(taken: Tensor, generator: torch.Generator) -> Tensor:
            cells = torch.multinomial(density, CANDIDATES, replacement=True, generator=generator)
            within = torch.rand(CANDIDATES, 2, generator=generator)
            corners = torch.stack([cells % GRID, cells // GRID], dim=1)
            pixels = ((corners + within) / GRID * self.image_size).floor()
            candidates = (pixels + 0.5) / self.image_size * 2 - 1
            distances = torch.cdist(candidates, taken).amin(1)
            return _first_clear(candidates, distances, CLEARANCE)

        return next_one

    def _as_in_data(self) -> "NextObject":
        points = _points()
        density = self._fine_density(points)
        candidates_on_floor = camera.floor_under(self._middles(points), HEIGHT)

        def next_one(taken: Tensor, generator: torch.Generator) -> Tensor:
            chosen = torch.multinomial(density, CANDIDATES, replacement=True, generator=generator)
            on_floor = camera.floor_under(taken, HEIGHT)
            distances = torch.cdist(candidates_on_floor[chosen], on_floor).amin(1)
            return _first_clear(self._middles(points[chosen]), distances, camera.CLEARANCE)

        return next_one

    def _fine_density(self, points: Tensor) -> Tensor:
        """The density at ``points`` (N, 2), of :func:`_points`; float32 (N,), its sum is 1.

        Each cell keeps its mass; within it the density goes with the floor's area under a point,
        where the floor is on the square and clear of the first object. A cell in which that is
        nowhere has its mass spread evenly.
        """
        on_floor = camera.floor_under(points, HEIGHT)
        from_first = on_floor - camera.floor_under(self.first.float().cpu()[None], HEIGHT)
        allowed = on_floor.abs().amax(1) <= camera.REACH
        allowed &= from_first.norm(dim=1) >= camera.CLEARANCE
        x, y = ((points + 1) / 2 * GRID).long().unbind(1)
        cell = y * GRID + x
        mass = self.density.float().cpu().flatten()
        area = torch.where(allowed, _floor_areas(points), 0.0)
        in_cell = torch.zeros(GRID * GRID).index_add(0, cell, area)
        area = torch.where(in_cell[cell] > 0, area, 1.0)
        in_cell = torch.zeros(GRID * GRID).index_add(0, cell, area)
        result: Tensor = mass[cell] * area / in_cell[cell]
        return result / result.sum()

    def _middles(self, positions: Tensor) -> Tensor:
        """The middles of the pixels that positions (…, 2) lie in."""
        pixels = ((positions + 1) / 2 * self.image_size).floor().clamp(0, self.image_size - 1)
        return (pixels + 0.5) / self.image_size * 2 - 1


NextObject = Callable[[Tensor, torch.Generator], Tensor]  # positions taken (N, 2) → one more (1, 2)


def check_layout(name: str) -> None:
    """Check the name of a layout.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {name!r:.60}")


def check_positions(positions: Tensor, labels: Tensor) -> Tensor:
    """Check positions of labels (B, L), and return them.

    Raises:
        ValueError: they are not of shape (B, L, 2), or one is NaN or outside [-1, 1].
    """
    if positions.shape != (*labels.shape, 2):
        expected, given = (*labels.shape, 2), tuple(positions.shape)
        raise ValueError(f"positions must have shape {expected}, got {given}")
    if not (positions.abs() <= 1).all():
        raise ValueError("positions must be in [-1, 1]")
    return positions


def _first_clear(candidates: Tensor, distances: Tensor, clearance: float) -> Tensor:
    """(1, 2): the first of (N, 2) whose distance is at least the clearance, or the farthest."""
    return candidates[distances.clamp(max=clearance).argmax()][None]


def _points() -> Tensor:
    """(POINTS², 2): the middles of a grid's cells over the image, row by row."""
    middles = (torch.arange(POINTS) + 0.5) / POINTS * 2 - 1
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _floor_areas(points: Tensor) -> Tensor:
    """How much floor a unit of the image around points (N, 2) shows, (N,), by differences."""
    step = 1e-2
    along = [
        (camera.floor_under(points + d, HEIGHT) - camera.floor_under(points - d, HEIGHT))
        / (2 * step)
        for d in step * torch.eye(2)
    ]
    return (along[0][:, 0] * along[1][:, 1] - along[0][:, 1] * along[1][:, 0]).abs()


def with_positions(labels: Tensor, positions: Tensor) -> Tensor:
    """What a network with positions takes for labels, (B, 3 L): the labels, each one's x, its y."""
    return torch.cat([labels, positions[..., 0], positions[..., 1]], dim=1)


def split_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, L) and positions (B, L, 2) of what :func:`with_positions` put together.

    Raises:
        ValueError: there are no positions in it.
    """
    if labels.shape[1] != 3 * NUM_LABELS:
        raise ValueError(
            f"this network takes labels with positions, {3 * NUM_LABELS} numbers an image,"
            f" not {labels.shape[1]}"
        )
    labels, x, y = labels.chunk(3, dim=1)
    return labels, torch.stack([x, y], dim=-1)


def encoded(positions: Tensor) -> Tensor:
    """(…, 2) → (…, 34): the positions, and their sines and cosines of eight octaves."""
    octaves = 2.0 ** torch.arange(OCTAVES, device=positions.device) * (math.pi / 2)
    waves = (positions[..., None] * octaves).flatten(-2)
    return torch.cat([positions, waves.sin(), waves.cos()], dim=-1)


def painted(labels: Tensor, positions: Tensor, size: int) -> Tensor:
    """(B, 8 + 3, size, size): a soft blob of each object in the map of its colour and its shape.

    Objects further down are nearer, so their blobs are larger, as the real ones' heights are: 8
    pixels at row 16 of 64, 22 at row 48.
    """
    middles = (torch.arange(size, device=positions.device) + 0.5) / size * 2 - 1
    return painted_at(labels, positions, middles, middles)


def painted_at(
    labels: Tensor, positions: Tensor, rows: Tensor, columns: Tensor, width: float = 1.0
) -> Tensor:
    """The maps of :func:`painted` at some rows and columns of the image: (B, 8 + 3, h, w).

    Args:
        labels: (B, L), multi-hot.
        positions: (B, L, 2).
        rows, columns: of the pixels' middles, in [-1, 1]: (h,) and (w,), or (B, 1, h) and
            (B, 1, w) where each image has its own.
        width: of the blobs, as a share of the usual one.
    """
    spread = (0.14 + 0.13 * positions[..., 1:]).clamp(min=0.08)  # 0.3 of an object's height
    if width != 1:
        spread = width * spread
    across = torch.exp(-0.5 * ((columns - positions[..., :1]) / (0.75 * spread)).square())
    down = torch.exp(-0.5 * ((rows - positions[..., 1:]) / spread).square())
    blobs = (down * labels[..., None])[..., :, None] * across[..., None, :]
    shapes_by_colors = blobs.unflatten(1, (len(SHAPES), len(COLORS)))
    return torch.cat([shapes_by_colors.sum(1), shapes_by_colors.sum(2)], dim=1)
