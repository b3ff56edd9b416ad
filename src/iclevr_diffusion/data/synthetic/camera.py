"""i-CLEVR's world: a floor, the camera above it, and the positions of objects.

The world is that of Johnson et al. 2017 (arXiv:1612.06890): z points up, the floor is z = 0, and
the camera looks at the origin. Points and directions are tensors (..., 3, R).
"""

import torch
from torch import Tensor

REACH = 3.0  # objects are on the square of the floor from -3 to 3
CLEARANCE = 2.4  # least distance between the centers of two objects
MARKED_HEIGHT = 0.5  # above the floor, of the point of an object that its position marks; fitted

EYE = (7.48113, -6.50764, 5.34367)
ASPECT = 3 / 4
HALF_VIEW = 16 / 35  # tangent of half the horizontal field: a 32 mm sensor behind a 35 mm lens


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product over the second-to-last dimension."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-2), b.unbind(-2)
    return ax * bx + ay * by + az * bz


def normalize(vectors: Tensor) -> Tensor:
    """Scale vectors (..., 3, R) to length 1."""
    return vectors / dot(vectors, vectors).sqrt().unsqueeze(-2)


def eye(device: torch.device) -> Tensor:
    """Return the position of the camera, (3, 1)."""
    return torch.tensor(EYE, device=device)[:, None]


def view_axes(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unit vectors right, up and forward of the camera, each (3, 1)."""
    forward = normalize(-eye(torch.device("cpu")).double())
    right = normalize(torch.linalg.cross(forward, torch.eye(3).double()[:, 2:], dim=0))
    up = torch.linalg.cross(right, forward, dim=0)
    return right.float().to(device), up.float().to(device), forward.float().to(device)


def camera_rays(u: Tensor, v: Tensor) -> Tensor:
    """Return unit directions (N, 3, R) through image points ``u``, ``v``.

    Both are (N, R), from -1 to 1, left to right and top to bottom.
    """
    right, up, forward = view_axes(u.device)
    sideways, upwards = HALF_VIEW * u[:, None], -ASPECT * HALF_VIEW * v[:, None]
    return normalize(forward + sideways * right + upwards * up)


def project(points: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points (N, 3, R) to image points u, v, each (N, R)."""
    right, up, forward = view_axes(points.device)
    ray = points - eye(points.device)
    depth = HALF_VIEW * dot(ray, forward)
    return dot(ray, right) / depth, -dot(ray, up) / (ASPECT * depth)


def floor_under(points: Tensor, height: float) -> Tensor:
    """Return floor positions (N, 2) under the points at a height that image points (N, 2) show.

    Args:
        points: x to the right and y down, in [-1, 1].
        height: Above the floor, in units of the world.
    """
    rays = camera_rays(points[None, :, 0], points[None, :, 1])
    start = eye(points.device)
    return (start + (height - start[2]) / rays[:, 2:] * rays)[0, :2].T
