"""Headings of the cubes in i-CLEVR's frames.

A heading is an object's rotation about the vertical, in radians, counter-clockwise as seen from
above; 0 if a face points at the camera. A cube looks the same after a quarter turn, so its heading
is in [-π/4, π/4). Spheres and cylinders look the same from all sides and have none.
"""

import logging
import math

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS
from iclevr_diffusion.data.positions import CHANGE, find_growth
from iclevr_diffusion.data.synthetic import camera
from iclevr_diffusion.data.synthetic.camera import MARKED_HEIGHT
from iclevr_diffusion.data.synthetic.raycast import CUBE, Solids
from iclevr_diffusion.data.synthetic.render import surfaces

VERSION = 1  # changed whenever other headings are found, to invalidate caches
QUARTER = math.pi / 2
BOX = (0.42, 0.33)  # height and width of the pixels that are compared, as shares of the image
COARSE = 12  # headings tried first, over a quarter turn
FINE = torch.tensor([-2.0, -1, 0, 1, 2]) / 3 * QUARTER / COARSE
CROSS = torch.tensor([(0.0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])  # shifts, in pixels
SQUARE = torch.cartesian_prod(*[torch.tensor([-0.5, 0, 0.5])] * 2)
RIDGE = 0.1  # keeps the color of a face that is not visible finite

log = logging.getLogger(__name__)


def find_headings(images: Tensor, labels: Tensor, sequences: Tensor, positions: Tensor) -> Tensor:
    """Find the heading of each cube whose position is known.

    A cube's faces are projected for each of several headings, and positions up to 1.5 pixels away.
    With the best color for each face, the heading is the one that leaves the least squared error.
    On synthetic frames of 64×64 pixels, half of the errors are below 3°.

    Args:
        images: uint8, (N, 3, H, W), of i-CLEVR.
        labels: float32, (N, L), object counts.
        sequences: int64, (N,), the sequence of each frame.
        positions: float32, (N, L, 2), as :func:`~.positions.find_positions`.

    Returns:
        float32, (N, L), NaN where a label is no cube, is not in the frame, or the position is
        unknown.
    """
    labels, images = labels.cpu(), images.cpu()
    order, one_more = find_growth(labels, sequences)
    before = dict(zip(order[1:][one_more].tolist(), order[:-1][one_more].tolist(), strict=True))
    headings = torch.full(labels.shape, torch.nan)
    cubes = torch.arange(labels.shape[1]) // len(COLORS) == CUBE
    log.info("finding the headings of cubes, once; this takes minutes")
    for frame in order.tolist():
        new = labels[frame] > 0
        floor = None
        if frame in before:
            headings[frame] = headings[before[frame]]
            new &= labels[before[frame]] == 0
            floor = images[before[frame]]
        for label in (new & cubes & positions[frame].isfinite().all(-1)).nonzero().flatten():
            heading = fit_heading(images[frame], floor, positions[frame, label])
            headings[frame, label] = heading
    return headings


def encode_headings(headings: Tensor) -> Tensor:
    """Return cosine and sine of four times the headings of cubes: (…) → (…, 2), 0 for none.

    They are equal for equal views, and continuous.
    """
    angles = 4 * headings.nan_to_num()
    return torch.stack([angles.cos(), angles.sin()], dim=-1) * headings.isfinite()[..., None]


def sight(positions: Tensor) -> Tensor:
    """Return the direction from floor positions (N, 2) to the camera, in radians, (N,)."""
    toward = torch.tensor(camera.EYE[:2]) - positions
    return torch.atan2(toward[:, 1], toward[:, 0])


def wrap(headings: Tensor) -> Tensor:
    """Return equal headings of cubes in [-π/4, π/4)."""
    return (headings + QUARTER / 2) % QUARTER - QUARTER / 2


def fit_heading(image: Tensor, before: Tensor | None, position: Tensor) -> float:
    """Fit the heading of a cube.

    Args:
        image: uint8, (3, H, W).
        before: The image without the cube; None if there is none.
        position: (2,), near the cube's position.
    """
    target = _Target(image, before, position)
    shifts = CROSS if before is not None else CROSS[:1]  # first objects are all at one position
    headings = torch.arange(COARSE) / COARSE * QUARTER
    heading, shift = target.best(headings, shifts)
    heading, _ = target.best(heading + FINE, shift + SQUARE)
    return float(wrap(heading))


class _Target:
    """The pixels around a cube, and the error that projected faces leave in them."""

    def __init__(self, image: Tensor, before: Tensor | None, position: Tensor) -> None:
        self.size, self.position = image.shape[-1], position
        spans = []
        for center, share in zip(reversed(position.tolist()), BOX, strict=True):
            length = round(share * self.size)
            first = round((center + 1) / 2 * self.size - length / 2)
            spans.append(torch.arange(max(first, 0), min(first + length, self.size)))
        self.rows, self.columns = spans
        pixels = self._cut(image)
        if before is None:
            # An unknown floor, linear in the rows and columns.
            down, across = (torch.linspace(-1, 1, len(span)) for span in spans)
            grid = torch.meshgrid(down, across, indexing="ij")
            self.floor = torch.stack([torch.ones_like(grid[0]), *grid]).flatten(1)
            self.known = torch.zeros_like(pixels)
        else:
            self.floor = torch.empty(0, pixels.shape[1])
            self.known = self._cut(before)
            changed = (pixels - self.known).abs().amax(0) > CHANGE  # more than by a shadow
            pixels = torch.where(changed, pixels, self.known)
        self.pixels = pixels

    def best(self, headings: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heading and the shift, in pixels, that leave the least squared error."""
        each = headings.repeat_interleave(len(shifts))
        moved = shifts.repeat(len(headings), 1)
        best = self._errors(each, self.position + moved * 2 / self.size).argmin()
        return each[best], moved[best]

    def _errors(self, headings: Tensor, positions: Tensor) -> Tensor:
        """Return the squared error for each of N headings (N,) and positions (N, 2)."""
        n = len(headings)
        on_floor = camera.floor_under(positions, MARKED_HEIGHT)
        angle = headings + sight(on_floor)
        solids = Solids(
            shape=torch.full((n,), CUBE),
            position=on_floor,
            heading=torch.stack([angle.cos(), angle.sin()], dim=1),
            form=torch.ones(n, 2),
        )
        rows, columns = self.rows.expand(n, -1), self.columns.expand(n, -1)
        coverage, _, normals = surfaces(solids, rows, columns, self.size)
        # A pixel is a mixture of the faces that its normal points to, and of the floor.
        faces = solids.to_local(normals).square() * coverage[:, None]
        floor = self.floor * (1 - coverage[:, None])
        parts = torch.cat([faces, floor], dim=1)  # (N, parts, pixels)
        target = self.pixels - self.known * (1 - coverage[:, None])  # (N, 3, pixels)
        gram = parts @ parts.mT + RIDGE * torch.eye(parts.shape[1])
        colors = torch.linalg.solve(gram, parts @ target.mT)
        error: Tensor = (target - colors.mT @ parts).square().sum((1, 2))
        return error

    def _cut(self, image: Tensor) -> Tensor:
        return image[:, self.rows][:, :, self.columns].float().flatten(1)
