"""Poses of the objects in i-CLEVR's frames: positions finer than a pixel, and headings of cubes.

A heading is an object's rotation about the vertical, in radians, counter-clockwise as seen from
above; 0 if a face points at the camera. A cube looks the same after a quarter turn, so its heading
is in [-π/4, π/4). Spheres and cylinders look the same from all sides and have none.

For an object of eight pixels, half a pixel changes the image as much as a cube's heading does.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS
from iclevr_diffusion.data.positions import CHANGE, find_growth
from iclevr_diffusion.data.synthetic import camera
from iclevr_diffusion.data.synthetic.camera import MARKED_HEIGHT
from iclevr_diffusion.data.synthetic.raycast import CUBE, Solids
from iclevr_diffusion.data.synthetic.render import BOX, surfaces

VERSION = 2  # changed whenever other poses are found, to invalidate caches
QUARTER = math.pi / 2
# Headings of cubes that are tried, then added to the best one, twice.
COARSEST = torch.arange(12) / 12 * QUARTER
FINE = torch.arange(-2.0, 3) / 36 * QUARTER
FINEST = torch.arange(-1.0, 2) / 72 * QUARTER
CROSS = torch.tensor([(0.0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])  # shifts, in pixels
SQUARE = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1])] * 2)
RIDGE = 0.1  # keeps the color of a face that is not visible finite

log = logging.getLogger(__name__)


def find_poses(images: Tensor, labels: Tensor, sequences: Tensor, positions: Tensor) -> Tensor:
    """Find the pose of each object whose position is known.

    An object's surface is projected for each of several headings, and positions up to 1.75 pixels
    away. With the best color for each face of a cube, or the best linear function of the normal for
    the other shapes, the pose is the one that leaves the least squared error. On synthetic frames
    of 64×64 pixels, half of the headings are off by less than 2°, and half of the positions by less
    than 0.14 pixels.

    Args:
        images: uint8, (N, 3, H, W), of i-CLEVR.
        labels: float32, (N, L), object counts.
        sequences: int64, (N,), the sequence of each frame.
        positions: float32, (N, L, 2), as :func:`~.positions.find_positions`.

    Returns:
        float32, (N, L, 3): x, y and heading. NaN where a label is not in the frame, or its position
        is unknown; headings are NaN where a label is no cube, too. First objects keep their
        positions.
    """
    labels, images = labels.cpu(), images.cpu()
    order, one_more = find_growth(labels, sequences)
    before = dict(zip(order[1:][one_more].tolist(), order[:-1][one_more].tolist(), strict=True))
    poses = torch.full((*labels.shape, 3), torch.nan)
    shapes = torch.arange(labels.shape[1]) // len(COLORS)
    log.info("finding the poses of objects, once; this takes minutes")
    for frame in order.tolist():
        new = labels[frame] > 0
        floor = None
        if frame in before:
            poses[frame] = poses[before[frame]]
            new &= labels[before[frame]] == 0
            floor = images[before[frame]]
        for label in (new & positions[frame].isfinite().all(-1)).nonzero().flatten():
            position, shape = positions[frame, label], int(shapes[label])
            poses[frame, label] = fit_pose(shape, images[frame], floor, position)
    return poses


def encode_poses(positions: Tensor, poses: Tensor) -> Tensor:
    """Combine positions (…, 2) and poses (…, 3), NaN for none, into inputs of a network, (…, 4).

    These are the position, from the pose if there is one, and the cosine and sine of four times the
    heading, which are equal for equal views, and continuous; 0 for none.
    """
    at, headings = poses.split([2, 1], dim=-1)
    angles = 4 * headings.nan_to_num()
    codes = torch.cat([angles.cos(), angles.sin()], dim=-1) * headings.isfinite()
    return torch.cat([torch.where(at.isfinite(), at, positions), codes], dim=-1)


def sight(positions: Tensor) -> Tensor:
    """Return the direction from floor positions (N, 2) to the camera, in radians, (N,)."""
    toward = torch.tensor(camera.EYE[:2]) - positions
    return torch.atan2(toward[:, 1], toward[:, 0])


def wrap(headings: Tensor) -> Tensor:
    """Return equal headings of cubes in [-π/4, π/4)."""
    return (headings + QUARTER / 2) % QUARTER - QUARTER / 2


def fit_pose(shape: int, image: Tensor, before: Tensor | None, position: Tensor) -> Tensor:
    """Fit x, y and heading of an object, (3,); the heading is NaN if it is no cube.

    Args:
        shape: As :class:`~.synthetic.raycast.Solids`.
        image: uint8, (3, H, W).
        before: The image without the object; None if there is none.
        position: (2,), near the object's position.
    """
    if before is None and shape != CUBE:
        return torch.tensor([*position.tolist(), torch.nan])  # all first objects are there
    target = _Target(shape, image, before, position)
    turns = shape == CUBE
    steps = (COARSEST, FINE, FINEST) if turns else 3 * (torch.zeros(1),)
    heading, shift = target.best(steps[0], CROSS)
    heading, shift = target.best(heading + steps[1], shift + SQUARE / 2)
    heading, shift = target.best(heading + steps[2], shift + SQUARE / 4)
    if before is None:
        shift = torch.zeros(2)
    heading = wrap(heading) if turns else torch.tensor(torch.nan)
    return torch.cat([position + shift * 2 / target.size, heading[None]])


class _Target:
    """The pixels around an object, and the error that projected surfaces leave in them."""

    def __init__(self, shape: int, image: Tensor, before: Tensor | None, position: Tensor) -> None:
        self.shape, self.size, self.position = shape, image.shape[-1], position
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
            shape=torch.full((n,), self.shape),
            position=on_floor,
            heading=torch.stack([angle.cos(), angle.sin()], dim=1),
            form=torch.ones(n, 2),
        )
        rows, columns = self.rows.expand(n, -1), self.columns.expand(n, -1)
        coverage, _, normals = surfaces(solids, rows, columns, self.size)
        # A pixel is a mixture of the surface and of the floor. That of a cube is the mixture of the
        # faces that its normal points to.
        normals = solids.to_local(normals)
        parts = normals.square() if self.shape == CUBE else F.pad(normals, (0, 0, 0, 1), value=1.0)
        surface = parts * coverage[:, None]
        floor = self.floor * (1 - coverage[:, None])
        parts = torch.cat([surface, floor], dim=1)  # (N, parts, pixels)
        target = self.pixels - self.known * (1 - coverage[:, None])  # (N, 3, pixels)
        gram = parts @ parts.mT + RIDGE * torch.eye(parts.shape[1])
        colors = torch.linalg.solve(gram, parts @ target.mT)
        error: Tensor = (target - colors.mT @ parts).square().sum((1, 2))
        return error

    def _cut(self, image: Tensor) -> Tensor:
        return image[:, self.rows][:, :, self.columns].float().flatten(1)
