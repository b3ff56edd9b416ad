"""Ray casting in CLEVR's world: upright solids on a floor, seen from a fixed camera.

The world and the camera are those of :mod:`iclevr_diffusion.data.synthetic.camera`.

All operations on points are elementwise, so the result for a ray does not depend on its batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from iclevr_diffusion.data.synthetic.camera import camera_rays, dot, eye, normalize

CUBE, SPHERE, CYLINDER, SUPERQUADRIC, ROUNDED_CUBE = range(5)
HALF_WIDTH = (0.572, 0.603, 0.592, 0.585, 0.575)  # half a cube's edge, and the radii
HALF_HEIGHT = (0.572, 0.575, 0.595, 0.585, 0.575)  # a sphere sinks in a little
BEVEL = 0.05
SEARCH_STEPS = 14  # of the search for the point where a ray enters a shape in between

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Solids:
    """N solids on the floor.

    Attributes:
        shape: int64, (N,): CUBE, SPHERE, CYLINDER, or one in between: SUPERQUADRIC, ROUNDED_CUBE.
        position: float32, (N, 2), center of the base on the floor.
        heading: float32, (N, 2), cosine and sine of the rotation about the vertical.
        form: float32, (N, 2). Of a superquadric (Barr 1981) ((|x|/w)^p + (|y|/w)^p)^(q/p) +
            (|z|/h)^q <= 1 the exponents p and q, both at least 1: p = 2 is round from above, p → ∞
            a square, q = 2 round from the side, q → ∞ flat. Of a rounded cube the radius of its
            edges and corners, as a share of half its width, in (0, 1], twice. Unused by the others.
    """

    shape: Tensor
    position: Tensor
    heading: Tensor
    form: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Solids":
        return Solids(
            self.shape[index], self.position[index], self.heading[index], self.form[index]
        )

    def to(self, device: torch.device | str) -> "Solids":
        return Solids(
            self.shape.to(device),
            self.position.to(device),
            self.heading.to(device),
            self.form.to(device),
        )

    def centers(self) -> Tensor:
        """World points (N, 3, 1)."""
        half_height = torch.tensor(HALF_HEIGHT, device=self.shape.device)[self.shape]
        return torch.cat((self.position, half_height[:, None]), 1)[:, :, None]

    def to_local(self, vectors: Tensor) -> Tensor:
        """Rotate world vectors (N, 3, R) into the axes of each solid."""
        x, y, z = vectors.unbind(-2)
        cos, sin = self.heading[:, :1], self.heading[:, 1:]
        return torch.stack((cos * x + sin * y, cos * y - sin * x, z), -2)

    def to_world(self, vectors: Tensor) -> Tensor:
        """Invert :meth:`to_local`."""
        x, y, z = vectors.unbind(-2)
        cos, sin = self.heading[:, :1], self.heading[:, 1:]
        return torch.stack((cos * x - sin * y, cos * y + sin * x, z), -2)


def floor_points(size: int, device: torch.device) -> Tensor:
    """Return the floor points of the pixels of a square image, row by row, (1, 3, size²)."""
    grid = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    rays = camera_rays(u.reshape(1, -1), v.reshape(1, -1))
    start = eye(device)
    return start - start[2] / rays[:, 2:] * rays


def first_hits(solids: Solids, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find where rays from the camera enter the solids.

    Args:
        solids: N solids, each seen alone.
        rays: Directions (N, 3, R), one set for each solid.

    Returns:
        Whether rays hit, bool (N, R); the points, and the outward unit normals there, both
        (N, 3, R), finite but meaningless where a ray misses.
    """
    start = eye(rays.device)
    hit = torch.empty_like(rays[:, 0], dtype=torch.bool)
    points, normals = torch.empty_like(rays), torch.empty_like(rays)
    for shape, rows in _by_shape(solids):
        some, ray = solids[rows], rays[rows]
        origin, direction = some.to_local(start - some.centers()), some.to_local(ray)
        near, far = _inside(shape, origin, direction, some.form)
        hit[rows] = near < far
        near = torch.where(near < far, near, 1.0)[:, None]
        points[rows] = start + near * ray
        normals[rows] = some.to_world(_normals(shape, origin + near * direction, some.form))
    return hit, points, normals


def transmittance(solids: Solids, points: Tensor, lamps: Tensor) -> Tensor:
    """Return the visible share of each lamp behind a solid, from 0 (full shadow) to 1.

    Args:
        solids: N solids, each considered alone.
        points: (N or 1, 3, R), where the light arrives, outside the solids.
        lamps: (N, 3, C, Q), Q points on each of C lamps, all higher than the solids.

    Returns:
        float32, (N, C, R).
    """
    count, _, channels, samples = lamps.shape
    points = points.expand(count, -1, -1)
    result = torch.empty(count, channels, points.shape[2], device=points.device)
    for shape, rows in _by_shape(_with_simple_shadows(solids)):
        some = solids[rows]
        middle = some.centers()
        origin = some.to_local(points[rows] - middle)[:, None]
        targets = some.to_local(lamps[rows].flatten(2) - middle).unflatten(2, (channels, samples))
        blocked = torch.zeros_like(result[rows])
        for target in targets.transpose(1, 2).split(1, dim=3):
            near, far = _inside(shape, origin, target - origin, some.form)
            blocked += (near < far) & (far > 1e-3)
        result[rows] = 1 - blocked / samples
    return result


def _by_shape(solids: Solids) -> list[tuple[int, Tensor]]:
    """Return each shape that occurs, with the int64 indices of its solids."""
    rows = [(solids.shape == shape).nonzero()[:, 0] for shape in range(len(HALF_WIDTH))]
    return [(shape, index) for shape, index in enumerate(rows) if len(index)]


def _with_simple_shadows(solids: Solids) -> Solids:
    """Replace shapes in between by cylinders, whose soft shadows look the same."""
    return replace(solids, shape=torch.where(solids.shape >= SUPERQUADRIC, CYLINDER, solids.shape))


def _inside(shape: int, origin: Tensor, direction: Tensor, form: Tensor) -> Interval:
    """Return the interval of t where origin + t direction, in a solid's frame, is inside it.

    The interval is empty (not near < far) if the ray misses.
    """
    width = HALF_WIDTH[shape]
    if shape in (SUPERQUADRIC, ROUNDED_CUBE):
        return _inside_convex(shape, origin, direction, form)
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


def _inside_convex(shape: int, origin: Tensor, direction: Tensor, form: Tensor) -> Interval:
    """Compute :func:`_inside` by search: along a ray the gauge of a convex solid is convex.

    Ternary search finds the deepest point of the ray, then bisection finds both ends.
    """
    halves = (HALF_WIDTH[shape], HALF_WIDTH[shape], HALF_HEIGHT[shape])
    parts = zip(origin.unbind(-2), direction.unbind(-2), halves, strict=True)
    spans = [_slab(start, along, half) for start, along, half in parts]
    near = torch.stack(torch.broadcast_tensors(*(span[0] for span in spans))).amax(0)
    far = torch.stack(torch.broadcast_tensors(*(span[1] for span in spans))).amin(0)

    def gauge(t: Tensor) -> Tensor:
        return _gauge(shape, origin + t.unsqueeze(-2) * direction, form)

    low, high = near, far
    for _ in range(SEARCH_STEPS):
        third = (high - low) / 3
        left = gauge(low + third) < gauge(high - third)
        low, high = torch.where(left, low, low + third), torch.where(left, high - third, high)
    deepest = (low + high) / 2
    hit = (near < far) & (gauge(deepest) < 1)
    ends = []
    for outside in (near, far):
        inner = deepest
        for _ in range(SEARCH_STEPS):
            middle = (outside + inner) / 2
            beyond = gauge(middle) >= 1
            outside = torch.where(beyond, middle, outside)
            inner = torch.where(beyond, inner, middle)
        ends.append(torch.where(hit, inner, 0.0))
    return ends[0], ends[1]


def _gauge(shape: int, points: Tensor, form: Tensor) -> Tensor:
    """Return the convex gauge of points (N, …, 3, R): below 1 inside the shape, above 1 outside."""
    x, y, z = points.abs().unbind(-2)
    first, second = (column.view(-1, *[1] * (x.ndim - 1)) for column in form.unbind(1))
    width, height = HALF_WIDTH[shape], HALF_HEIGHT[shape]
    if shape == SUPERQUADRIC:
        flat = ((x / width) ** first + (y / width) ** first) ** (1 / first)
        return (flat**second + (z / height) ** second) ** (1 / second)
    radius = first * width
    beyond = [
        (distance - (half - radius)).clamp(min=0)
        for distance, half in ((x, width), (y, width), (z, height))
    ]
    return (beyond[0] ** 2 + beyond[1] ** 2 + beyond[2] ** 2).sqrt() / radius


def _solve(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Return the interval where a t² + 2 b t + c < 0; a single point if there is none."""
    root = (b * b - a * c).clamp(min=0).sqrt()
    return (-b - root) / a, (root - b) / a


def _slab(origin: Tensor, direction: Tensor, half: float) -> Interval:
    """Return the interval where |origin + t direction| < half."""
    inverse = 1 / (direction + 1e-9)  # avoids infinity if a ray is parallel to the slab
    middle, reach = origin * inverse, half * inverse.abs()
    return -middle - reach, reach - middle


def _normals(shape: int, points: Tensor, form: Tensor) -> Tensor:
    """Return outward unit normals at surface points in a solid's frame, with rounded edges."""
    if shape == SPHERE:
        return normalize(points)
    x, y, z = points.unbind(-2)
    if shape == SUPERQUADRIC:
        return normalize(_superquadric_gradient(points, form) + 1e-9)
    if shape == ROUNDED_CUBE:
        halves = torch.tensor([HALF_WIDTH[shape]] * 2 + [HALF_HEIGHT[shape]], device=x.device)
        core = halves[:, None] - form[:, :1, None] * HALF_WIDTH[shape]
        return normalize(points - torch.minimum(torch.maximum(points, -core), core) + 1e-9)
    inner = HALF_WIDTH[shape] - BEVEL
    if shape == CYLINDER:
        distance = (x * x + y * y).sqrt()
        share = (distance - inner).clamp(min=0) / distance
        x, y = x * share, y * share
    else:
        x, y = _beyond(x, inner), _beyond(y, inner)
    z = _beyond(z, HALF_HEIGHT[shape] - BEVEL)
    return normalize(torch.stack((x, y, z), -2) + 1e-9)


def _superquadric_gradient(points: Tensor, form: Tensor) -> Tensor:
    """Return a multiple of the gradient of the superquadric's gauge to the power q, (N, 3, R)."""
    shares = (
        points.abs()
        / points.new_tensor([HALF_WIDTH[SUPERQUADRIC]] * 2 + [HALF_HEIGHT[SUPERQUADRIC]])[:, None]
    )
    p, q = form[:, :1, None], form[:, 1:, None]
    flat = (shares[:, :2] ** p).sum(1, keepdim=True).clamp(min=1e-12)
    sides = flat ** (q / p - 1) * shares[:, :2] ** (p - 1)
    top = shares[:, 2:] ** (q - 1)
    return torch.cat((sides, top), 1) * points.sign()


def _beyond(x: Tensor, half: float) -> Tensor:
    return x - x.clamp(-half, half)
