"""Ray casting in CLEVR's world: upright solids on a floor, seen by a fixed camera.

The world and the camera are those of :mod:`iclevr_diffusion.world`.

All work on points is elementwise, so what a ray sees does not depend on the batch it is cast in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from iclevr_diffusion.world import camera_rays, dot, eye, normalize

CUBE, SPHERE, CYLINDER = range(3)
HALF_WIDTH = (0.572, 0.603, 0.592)  # half a cube's edge, and the radii
HALF_HEIGHT = (0.572, 0.575, 0.595)  # a sphere sinks in a little
BEVEL = 0.05

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Solids:
    """N solids that stand on the floor.

    shape: int64, (N,): CUBE, SPHERE or CYLINDER.
    position: float32, (N, 2), the middle of the base on the floor.
    heading: float32, (N, 2), cosine and sine of the turn about the vertical.
    """

    shape: Tensor
    position: Tensor
    heading: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Solids":
        return Solids(self.shape[index], self.position[index], self.heading[index])

    def to(self, device: torch.device | str) -> "Solids":
        return Solids(self.shape.to(device), self.position.to(device), self.heading.to(device))

    def centers(self) -> Tensor:
        """World points (N, 3, 1)."""
        half_height = torch.tensor(HALF_HEIGHT, device=self.shape.device)[self.shape]
        return torch.cat((self.position, half_height[:, None]), 1)[:, :, None]

    def to_local(self, vectors: Tensor) -> Tensor:
        """World vectors (N, 3, R) turned into each solid's own axes."""
        x, y, z = vectors.unbind(-2)
        cos, sin = self.heading[:, :1], self.heading[:, 1:]
        return torch.stack((cos * x + sin * y, cos * y - sin * x, z), -2)

    def to_world(self, vectors: Tensor) -> Tensor:
        """The way back from :meth:`to_local`."""
        x, y, z = vectors.unbind(-2)
        cos, sin = self.heading[:, :1], self.heading[:, 1:]
        return torch.stack((cos * x - sin * y, cos * y + sin * x, z), -2)


def floor_points(size: int, device: torch.device) -> Tensor:
    """The floor under the pixels of a square picture, row by row: (1, 3, size²)."""
    grid = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    rays = camera_rays(u.reshape(1, -1), v.reshape(1, -1))
    start = eye(device)
    return start - start[2] / rays[:, 2:] * rays


def first_hits(solids: Solids, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays from the camera enter the solids.

    Args:
        solids: N solids, each seen alone.
        rays: directions (N, 3, R), one set for each solid.

    Returns:
        Which rays hit, bool (N, R); the points, and the outward unit normals there, both
        (N, 3, R), finite but meaningless where a ray misses.
    """
    start = eye(rays.device)
    hit = torch.empty_like(rays[:, 0], dtype=torch.bool)
    points, normals = torch.empty_like(rays), torch.empty_like(rays)
    for shape in (CUBE, SPHERE, CYLINDER):
        rows = (solids.shape == shape).nonzero()[:, 0]
        some, ray = solids[rows], rays[rows]
        origin, direction = some.to_local(start - some.centers()), some.to_local(ray)
        near, far = _inside(shape, origin, direction)
        hit[rows] = near < far
        near = torch.where(near < far, near, 1.0)[:, None]
        points[rows] = start + near * ray
        normals[rows] = some.to_world(_normals(shape, origin + near * direction))
    return hit, points, normals


def transmittance(solids: Solids, points: Tensor, lamps: Tensor) -> Tensor:
    """How much of each lamp is seen past a solid: from 0, full shadow, to 1.

    Args:
        solids: N solids, each alone in the way.
        points: (N or 1, 3, R), where the light arrives, outside the solids.
        lamps: (N, 3, C, Q), Q points on each of C lamps, all higher than the solids.

    Returns:
        float32, (N, C, R).
    """
    count, _, channels, samples = lamps.shape
    points = points.expand(count, -1, -1)
    result = torch.empty(count, channels, points.shape[2], device=points.device)
    for shape in (CUBE, SPHERE, CYLINDER):
        rows = (solids.shape == shape).nonzero()[:, 0]
        some = solids[rows]
        middle = some.centers()
        origin = some.to_local(points[rows] - middle)[:, None]
        targets = some.to_local(lamps[rows].flatten(2) - middle).unflatten(2, (channels, samples))
        blocked = torch.zeros_like(result[rows])
        for target in targets.transpose(1, 2).split(1, dim=3):
            near, far = _inside(shape, origin, target - origin)
            blocked += (near < far) & (far > 1e-3)
        result[rows] = 1 - blocked / samples
    return result


def _inside(shape: int, origin: Tensor, direction: Tensor) -> Interval:
    """The interval of t in which origin + t direction, in a solid's own frame, is inside it.

    It is empty (not near < far) where the ray misses.
    """
    width = HALF_WIDTH[shape]
    if shape == SPHERE:
        squared = dot(origin, origin)
        return _solve(dot(direction, direction), dot(origin, direction), squared - width**2)
    (ox, oy, oz), (dx, dy, dz) = origin.unbind(-2), direction.unbind(-2)
    spans = [_slab(oz, dz, HALF_HEIGHT[shape])]
    if shape == CYLINDER:
        squared = ox * ox + oy * oy
        spans += [_solve(dx * dx + dy * dy, ox * dx + oy * dy, squared - width**2)]
    else:
        spans += [_slab(ox, dx, width), _slab(oy, dy, width)]
    near, far = spans[0]
    for span in spans[1:]:
        near, far = torch.maximum(near, span[0]), torch.minimum(far, span[1])
    return near, far


def _solve(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Where a t² + 2 b t + c < 0; a single point where nowhere."""
    root = (b * b - a * c).clamp(min=0).sqrt()
    return (-b - root) / a, (root - b) / a


def _slab(origin: Tensor, direction: Tensor, half: float) -> Interval:
    """Where |origin + t direction| < half."""
    inverse = 1 / (direction + 1e-9)  # no infinity where a ray runs along the slab
    middle, reach = origin * inverse, half * inverse.abs()
    return -middle - reach, reach - middle


def _normals(shape: int, points: Tensor) -> Tensor:
    """Outward unit normals at surface points in a solid's own frame, as if its edges were round."""
    if shape == SPHERE:
        return normalize(points)
    x, y, z = points.unbind(-2)
    inner = HALF_WIDTH[shape] - BEVEL
    if shape == CYLINDER:
        distance = (x * x + y * y).sqrt()
        share = (distance - inner).clamp(min=0) / distance
        x, y = x * share, y * share
    else:
        x, y = _beyond(x, inner), _beyond(y, inner)
    z = _beyond(z, HALF_HEIGHT[shape] - BEVEL)
    return normalize(torch.stack((x, y, z), -2) + 1e-9)


def _beyond(x: Tensor, half: float) -> Tensor:
    return x - x.clamp(-half, half)
