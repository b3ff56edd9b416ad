"""The prior over object positions, sampled before the image and given to the network.

p(image | labels) = ∫ p(image | labels, positions) p(positions | labels): a network that is told
the objects' positions does not have to settle them while it sees nothing but noise.

Positions are (…, 2), x to the right and y down, in [-1, 1] across the image; (…, 4) with headings.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from iclevr_diffusion.data.positions import GRID, PositionPrior
from iclevr_diffusion.data.synthetic import camera
from iclevr_diffusion.data.synthetic.camera import MARKED_HEIGHT
from iclevr_diffusion.utils.checks import check_choice

CLEAR, DATA = LAYOUTS = ("clear", "data")
POINTS = 128  # grid points of the fine density of `data`, on each side
CLEARANCE = 0.32  # least distance between objects in `clear`, where there is room
CANDIDATES = 64


class Layout(nn.Module):
    """p(positions | labels): one random object at the first position, the others by a density.

    In i-CLEVR the first object of every sequence is at one position, ``first``. The others follow
    a ``density`` over 16×16 cells, whatever their labels. There are two ways to sample them:

    ``clear``: at least 0.32 apart in the image, where there is room, so that each object is easy
    to see. 11 % of the pairs in real images of three objects are closer.

    ``data``: as in the training images, where objects are on a square of the floor, at least 2.4
    apart (:mod:`iclevr_diffusion.data.synthetic.camera`), however close they are in the image.
    Within a cell of the density, positions are uniform over the part of the floor that this rule
    allows. ``benchmarks/layout.py`` compares both layouts with real images.

    Without headings, sampled positions are pixel centers, as are those that
    :func:`~iclevr_diffusion.data.positions.find_positions` finds in the training images. With
    headings, all objects but the first are moved within their pixel, uniformly, and the headings
    of objects that have one are uniform.

    Args:
        image_size: Pixels on each side.
        num_labels: L, for headings; None for none.

    Attributes:
        dimensions: D of positions (…, D): 2, or 4 with headings.
        frozen: Whether the prior came with trained weights and must not be replaced.
    """

    first: Tensor
    density: Tensor
    turning: Tensor | None
    frozen: bool = False

    def __init__(self, image_size: int, num_labels: int | None = None) -> None:
        super().__init__()
        self.image_size = image_size
        self.dimensions = 2 if num_labels is None else 4
        turning = None if num_labels is None else torch.zeros(num_labels, dtype=torch.bool)
        self.register_buffer("turning", turning)
        self.register_buffer("first", torch.zeros(2))
        self.register_buffer("density", torch.ones(GRID, GRID))

    @property
    def has_headings(self) -> bool:
        """Whether the network takes headings, and positions finer than a pixel."""
        return self.turning is not None

    def set_prior(self, prior: PositionPrior) -> None:
        """Take over a prior that was fitted to the training images."""
        self.first.copy_(prior.first)
        self.density.copy_(prior.density)
        if self.turning is not None:
            self.turning.copy_(prior.turning)

    def check(self) -> None:
        """Check the density, which may come from a file.

        Raises:
            ValueError: It is negative somewhere, or zero everywhere.
        """
        if self.density.min() < 0 or self.density.sum() <= 0:
            raise ValueError("layout.density is negative somewhere, or zero everywhere")

    def sample(
        self, labels: Tensor, generators: Sequence[torch.Generator], layout: str = CLEAR
    ) -> Tensor:
        """Sample the positions of the objects.

        Args:
            labels: (B, L), multi-hot; objects with -1 get their positions after the others.
            generators: B generators on the CPU, one per image.
            layout: ``clear`` or ``data``.

        Returns:
            float32, (B, L, D), 0 where an image has no such label; on the device of ``labels``.

        Raises:
            ValueError: The layout is unknown.
        """
        check_layout(layout)
        next_one = self._clear() if layout == CLEAR else self._as_in_data()
        positions = torch.zeros(*labels.shape, 2)
        for row, mine, generator in zip(labels.cpu(), positions, generators, strict=True):
            present = (row > 0).nonzero().flatten()
            order = present[torch.randperm(len(present), generator=generator)]
            taken = self.first.float().cpu()[None]
            for number, which in enumerate([*order, *(row < 0).nonzero().flatten()]):
                if number > 0:
                    taken = torch.cat([taken, next_one(taken, generator)])
                mine[which] = taken[-1]
        positions = self.with_headings(positions, labels, generators)
        return self._within_pixels(positions, labels, generators).to(labels.device)

    def with_headings(
        self, positions: Tensor, labels: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Append sampled headings to positions (B, L, 2), unless there are none, or they are there.

        Args:
            positions: (B, L, 2 or D).
            labels: (B, L).
            generators: As :meth:`sample`.
        """
        if self.turning is None or positions.shape[-1] == self.dimensions:
            return positions
        angles = torch.stack([torch.rand(labels.shape[1], generator=g) for g in generators])
        angles = 2 * math.pi * angles
        turning = self.turning.cpu() & (labels.cpu() != 0)
        headings = torch.stack([angles.cos(), angles.sin()], dim=-1) * turning[..., None]
        return torch.cat([positions, headings.to(positions)], dim=-1)

    def _within_pixels(
        self, positions: Tensor, labels: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """With headings, move all objects but the first by up to half a pixel in x and in y.

        Args:
            positions: (B, L, D).
            labels: (B, L).
            generators: As :meth:`sample`.
        """
        if self.turning is None:
            return positions
        moves = torch.stack([torch.rand(positions.shape[1], 2, generator=g) for g in generators])
        moves = (2 * moves - 1) / self.image_size
        moved = (labels.cpu() != 0) & (positions[..., :2] != self.first.cpu()).any(-1)
        return torch.cat([positions[..., :2] + moves * moved[..., None], positions[..., 2:]], -1)

    def snap(self, positions: Tensor) -> Tensor:
        """Return the nearest positions, (…, D), among those of the training images.

        These are the pixel centers and the first position. With headings, they are all positions
        but those within half a pixel of the first one; headings are kept.
        """
        at, headings = positions[..., :2], positions[..., 2:]
        first = self.first.to(at)
        if self.turning is None:
            others = self._pixel_centers(at)
            is_first = (at - first).norm(dim=-1) < (at - others).norm(dim=-1)
        else:
            others = at
            is_first = (at - first).norm(dim=-1) < 1 / self.image_size
        return torch.cat([torch.where(is_first[..., None], first, others), headings], dim=-1)

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
        candidates_on_floor = _under(self._pixel_centers(points))

        def next_one(taken: Tensor, generator: torch.Generator) -> Tensor:
            chosen = torch.multinomial(density, CANDIDATES, replacement=True, generator=generator)
            on_floor = _under(taken)
            distances = torch.cdist(candidates_on_floor[chosen], on_floor).amin(1)
            return _first_clear(self._pixel_centers(points[chosen]), distances, camera.CLEARANCE)

        return next_one

    def _fine_density(self, points: Tensor) -> Tensor:
        """Evaluate the density at ``points`` (N, 2), of :func:`_points`; float32, (N,), sum 1.

        Each cell keeps its mass. Within a cell the density is proportional to the floor area under
        a point, where the floor belongs to the square and is clear of the first object. If that
        is nowhere in the cell, its mass is distributed evenly.
        """
        on_floor = _under(points)
        from_first = on_floor - _under(self.first.float().cpu()[None])
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

    def _pixel_centers(self, positions: Tensor) -> Tensor:
        """Return the centers of the pixels that contain positions (…, 2)."""
        pixels = ((positions + 1) / 2 * self.image_size).floor().clamp(0, self.image_size - 1)
        return (pixels + 0.5) / self.image_size * 2 - 1


NextObject = Callable[[Tensor, torch.Generator], Tensor]  # positions taken (N, 2) → one more (1, 2)


def check_layout(name: str) -> None:
    """Check the name of a layout.

    Raises:
        ValueError: It is unknown.
    """
    check_choice("layout", name, LAYOUTS)


def check_positions(positions: Tensor, labels: Tensor, dimensions: int = 2) -> Tensor:
    """Check the positions of labels (B, L), and return them.

    Raises:
        ValueError: Their shape is not (B, L, ``dimensions``), or one is NaN or outside [-1, 1].
    """
    if positions.shape != (*labels.shape, dimensions):
        expected, given = (*labels.shape, dimensions), tuple(positions.shape)
        raise ValueError(f"positions must have shape {expected}, got {given}")
    if not (positions.abs() <= 1).all():
        raise ValueError("positions must be in [-1, 1]")
    return positions


def _under(points: Tensor) -> Tensor:
    """Return the floor positions of objects at positions (N, 2) in the image."""
    return camera.floor_under(points, MARKED_HEIGHT)


def _first_clear(candidates: Tensor, distances: Tensor, clearance: float) -> Tensor:
    """Return the first of (N, 2) that is clear, or else the farthest, as (1, 2)."""
    return candidates[distances.clamp(max=clearance).argmax()][None]


def _points() -> Tensor:
    """Return the cell centers of a grid over the image, row by row, (POINTS², 2)."""
    centers = (torch.arange(POINTS) + 0.5) / POINTS * 2 - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _floor_areas(points: Tensor) -> Tensor:
    """Estimate the floor area per unit of image area at points (N, 2), by differences, (N,)."""
    step = 1e-2
    along = [
        (_under(points + shift) - _under(points - shift)) / (2 * step)
        for shift in step * torch.eye(2)
    ]
    return (along[0][:, 0] * along[1][:, 1] - along[0][:, 1] * along[1][:, 0]).abs()
