"""Ray casting of i-CLEVR's world: upright solids on a floor, lit by three lamps.

The world is CLEVR's (Johnson et al. 2017, arXiv:1612.06890): z points up, the floor is z = 0, and
the camera looks at the origin. Points and directions are tensors of shape (..., 3, R), R rays.

Every operation is elementwise, so a scene's picture does not depend on the batch it is in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CUBE, SPHERE, CYLINDER = range(3)

EYE = (7.48113, -6.50764, 5.34367)
HALF_WIDTH = 16 / 35  # tangent of half the field of view: a 32 mm sensor behind a 35 mm lens
HALF_HEIGHT = 0.75 * HALF_WIDTH

RADIUS = 0.6  # of spheres and cylinders; cylinders are as high as wide
HALF_EDGE = 0.53  # of cubes
HEIGHT = (2 * HALF_EDGE, 2 * RADIUS, 2 * RADIUS)
BEVEL = 0.05


@dataclass(frozen=True)
class Objects:
    """N solids.

    shape: int64, (N,): CUBE, SPHERE or CYLINDER.
    position: float32, (N, 2), the middle of the base on the floor.
    angle: float32, (N,), the turn about the vertical, in radians.
    """

    shape: Tensor
    position: Tensor
    angle: Tensor

    def select(self, index: Tensor) -> "Objects":
        return Objects(self.shape[index], self.position[index], self.angle[index])

    def to_local(self, points: Tensor, turn_only: bool = False) -> Tensor:
        """World points (N, 3, R) in each solid's own frame, whose origin is its centre."""
        x, y, z = points.unbind(-2)
        if not turn_only:
            height = torch.tensor(HEIGHT, device=points.device)[self.shape]
            x = x - self.position[:, 0, None]
            y = y - self.position[:, 1, None]
            z = z - 0.5 * height[:, None]
        cos, sin = self.angle.cos()[:, None], self.angle.sin()[:, None]
        return torch.stack(torch.broadcast_tensors(cos * x + sin * y, cos * y - sin * x, z), -2)

    def to_world(self, directions: Tensor) -> Tensor:
        """Directions (N, 3, R) in the solids' own frames, turned back into the world's."""
        x, y, z = directions.unbind(-2)
        cos, sin = self.angle.cos()[:, None], self.angle.sin()[:, None]
        return torch.stack((cos * x - sin * y, cos * y + sin * x, z), -2)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product over the second to last dimension."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-2), b.unbind(-2)
    return ax * bx + ay * by + az * bz


def normalize(a: Tensor) -> Tensor:
    return a / dot(a, a).sqrt().unsqueeze(-2)


def view_axes(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The camera's unit vectors right, up and forward, each of shape (3,)."""
    eye = torch.tensor(EYE, dtype=torch.float64)
    forward = -eye / eye.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    up = torch.linalg.cross(right, forward)
    return right.float().to(device), up.float().to(device), forward.float().to(device)


def camera_rays(u: Tensor, v: Tensor) -> Tensor:
    """Directions (N, 3, R) of the rays through the picture points ``u``, ``v``.

    Both are (N, R) and run from -1 to 1, left to right and top to bottom.
    """
    right, up, forward = (axis[:, None] for axis in view_axes(u.device))
    sideways, upwards = (HALF_WIDTH * u)[:, None], (-HALF_HEIGHT * v)[:, None]
    return normalize(forward + sideways * right + upwards * up)


def project(points: Tensor) -> tuple[Tensor, Tensor]:
    """The picture points u, v, each (N, R), of world points (N, 3, R)."""
    ray = points - torch.tensor(EYE, device=points.device)[:, None]
    right, up, forward = (axis[:, None] for axis in view_axes(points.device))
    depth = dot(ray, forward)
    return dot(ray, right) / depth / HALF_WIDTH, -dot(ray, up) / depth / HALF_HEIGHT


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Where a t² + 2 b t + c is negative, as an interval; empty (1, -1) where nowhere."""
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    miss = discriminant <= 0
    near, far = (-b - root) / a, (-b + root) / a
    return near.masked_fill(miss, 1.0), far.masked_fill(miss, -1.0)


def _slab(o: Tensor, d: Tensor, half: float) -> tuple[Tensor, Tensor]:
    """Where |o + t d| < half, as an interval."""
    inverse = 1 / torch.where(d.abs() < 1e-6, 1e-6, d)
    middle, reach = -o * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _span(shape: int, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Where the rays o + t d, in the solid's own frame, are inside it: t from near to far."""
    if shape == SPHERE:
        return _quadratic(dot(d, d), dot(o, d), dot(o, o) - RADIUS**2)
    (ox, oy, oz), (dx, dy, dz) = o.unbind(-2), d.unbind(-2)
    near, far = _slab(oz, dz, HEIGHT[shape] / 2)
    if shape == CYLINDER:
        sides = [_quadratic(dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - RADIUS**2)]
    else:
        sides = [_slab(ox, dx, HALF_EDGE), _slab(oy, dy, HALF_EDGE)]
    for side_near, side_far in sides:
        near, far = torch.maximum(near, side_near), torch.minimum(far, side_far)
    return near, far


def _normal(shape: int, p: Tensor) -> Tensor:
    """Unit normals at surface points in the solid's own frame; edges are bevelled."""
    if shape == SPHERE:
        return p / RADIUS
    x, y, z = p.unbind(-2)
    if shape == CYLINDER:
        width = (x * x + y * y).sqrt()
        flat = (width - (RADIUS - BEVEL)).clamp(min=0) / width
        x, y = x * flat, y * flat
    else:
        inner = HALF_EDGE - BEVEL
        x, y = x - x.clamp(-inner, inner), y - y.clamp(-inner, inner)
    inner = HEIGHT[shape] / 2 - BEVEL
    z = z - z.clamp(-inner, inner)
    return normalize(torch.stack((x, y, z + 1e-9), -2))


def first_hits(objects: Objects, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays from the camera meet each solid.

    Args:
        directions: (N, 3, R), one set of rays for each solid.

    Returns:
        Which rays hit, bool (N, R); the points, and the unit normals there, both (N, 3, R) and
        finite also where a ray misses.
    """
    eye = torch.tensor(EYE, device=directions.device)[None, :, None]
    hit = torch.zeros_like(directions[:, 0], dtype=torch.bool)
    points, normals = torch.zeros_like(directions), torch.zeros_like(directions)
    for shape in (CUBE, SPHERE, CYLINDER):
        rows = (objects.shape == shape).nonzero()[:, 0]
        some, d = objects.select(rows), directions[rows]
        local_eye, local_d = some.to_local(eye), some.to_local(d, turn_only=True)
        near, far = _span(shape, local_eye, local_d)
        near = near[:, None]
        hit[rows] = (near[:, 0] < far) & (far > 0)
        points[rows] = eye + near * d
        normals[rows] = some.to_world(_normal(shape, local_eye + near * local_d))
    return hit, points, normals


def transmittance(objects: Objects, points: Tensor, lamps: Tensor) -> Tensor:
    """How much of each lamp is seen past one solid: 1 is all of it, 0 is full shadow.

    Args:
        objects: N solids, each the only one in the way.
        points: (N, 3, R), where the light arrives.
        lamps: (N, 3, C, Q), C lamps, each as Q points on it.

    Returns:
        float32, (N, C, R).
    """
    count, _, channels, samples = lamps.shape
    result = torch.empty(count, channels, points.shape[-1], device=points.device)
    for shape in (CUBE, SPHERE, CYLINDER):
        rows = (objects.shape == shape).nonzero()[:, 0]
        some = objects.select(rows)
        origin = some.to_local(points.expand(count, -1, -1)[rows])
        local_lamps = some.to_local(lamps[rows].flatten(2))
        blocked = torch.zeros_like(result[rows])
        for index in range(samples):
            lamp = local_lamps.unflatten(2, (channels, samples))[..., index]
            o = origin.unsqueeze(1)
            direction = lamp.transpose(1, 2).unsqueeze(-1) - o
            near, far = _span(shape, o, direction)
            blocked += (near < far) & (far > 1e-3)
        result[rows] = 1 - blocked / samples
    return result
