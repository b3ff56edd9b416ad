"""Rendering of scenes: light, shadow, color, grain.

The light is CLEVR's: three lamps that shine along their axes, and an even glow from all around.
Brightness is linear until the last step, which makes it sRGB.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.synthetic import camera, raycast
from iclevr_diffusion.data.synthetic.raycast import Solids
from iclevr_diffusion.data.synthetic.scenes import Scenes, uniform

# CLEVR's colors in the order of labels.COLORS, linear RGB out of 255.
ALBEDO = (
    (87, 87, 87),
    (173, 35, 35),
    (42, 75, 215),
    (29, 105, 20),
    (129, 74, 25),
    (129, 38, 192),
    (41, 208, 208),
    (255, 238, 51),
)

# Fitted to real frames; the unit is the light that the floor reflects.
LAMP_AXES = ((-6.09, 4.80, -4.37), (5.09, 4.90, -2.56), (-0.34, -3.95, -5.50))
LAMP_COLORS = ((5.37, 4.97, 4.29), (1.36, 1.46, 1.82), (2.35, 2.35, 2.35))
LAMP_EDGE = 0.45
AMBIENT = 0.135
# Brightness of white objects relative to the floor, in each lamp's light and in ambient light.
LAMP_GAINS = (1.75, 0.55, 1.05)
AMBIENT_GAIN = 1.07
SHEEN = 0.012  # upward reflection of objects, independent of their color
GRAIN = 0.038  # relative standard deviation of the render noise of ambient light
UNDERSIDE = 0.7  # reduction of ambient light on surfaces that face downward
CONTACT = 0.5  # share of ambient light that an object takes from the floor at its base
BOUNCE = 0.32  # light that a white object reflects to the floor there
GRAIN_SEED = 64

SOURCE_SIZE = (240, 320)  # i-CLEVR's frames were rendered at this size, then subsampled
SAMPLES = (-0.4, 0.4)  # offsets of the samples of a pixel, in pixels of the source
BOX = (0.42, 0.32)  # height and width of a box around any object, as shares of the image


def render(scenes: Scenes, image_size: int) -> Tensor:
    """Render growing scenes.

    Args:
        scenes: N scenes of K objects, on the device that computes.
        image_size: Height and width in pixels, even.

    Returns:
        uint8, (N, K, 3, image_size, image_size), 0..255: image k has the first k + 1 objects.
    """
    n, k = scenes.color.shape
    rows, columns = _boxes(scenes.solids, image_size)
    # Objects may reach over the border, so the canvas has a margin as wide as a box.
    high, wide = rows.shape[1], columns.shape[1]
    margin = (wide, wide, high, high)
    glow = _glow(image_size, rows.device)
    canvas = F.pad(_floor(scenes, glow), margin)
    pixels = ((rows + high)[:, :, None] * canvas.shape[4] + (columns + wide)[:, None]).flatten(1)
    coverage, points, normals = surfaces(scenes.solids, rows, columns, image_size)
    colors = _shade(scenes, points, normals, F.pad(glow, margin).flatten()[pixels])
    _paint(canvas.flatten(3), pixels.view(n, k, -1), coverage.view(n, k, -1), colors, scenes)
    return (_srgb(canvas[..., high:-high, wide:-wide]) * 255 + 0.5).to(torch.uint8)


def render_empty(lamps: Tensor, image_size: int) -> Tensor:
    """Render the empty floor under lamps (N, 3, C), as uint8 (N, 3, size, size)."""
    points = raycast.floor_points(image_size, lamps.device)
    floor = _color(_irradiance(points, _upwards(points), lamps))
    floor = floor.unflatten(2, (image_size, image_size)) + _glow(image_size, lamps.device)
    return (_srgb(floor) * 255 + 0.5).to(torch.uint8)


def _paint(
    canvas: Tensor, pixels: Tensor, coverage: Tensor, colors: Tensor, scenes: Scenes
) -> None:
    """Paint the objects on the canvas (N, K, 3, ·), in place, from far to near.

    ``pixels`` and ``coverage`` are (N, K, P), ``colors`` is (N, K, K, 3, P): object, then image.
    """
    n, k = scenes.color.shape
    offset = scenes.solids.centers() - camera.eye(canvas.device)
    far_to_near = camera.dot(offset, offset).view(n, k).argsort(1, descending=True)
    each, images = torch.arange(n, device=canvas.device), torch.arange(k, device=canvas.device)
    for which in far_to_near.unbind(1):
        where = pixels[each, which][:, None, None].expand(-1, k, 3, -1)
        present = which[:, None] <= images
        opacity = (present[:, :, None] * coverage[each, which][:, None])[:, :, None]
        under = canvas.gather(3, where)
        canvas.scatter_(3, where, under + opacity * (colors[each, which] - under))


def _boxes(solids: Solids, size: int) -> tuple[Tensor, Tensor]:
    """Return the rows (N·K, h) and columns (N·K, w) of the pixels around each object."""
    u, v = camera.project(solids.centers())
    height, width = (round(share * size) for share in BOX)
    top = ((v + 1) / 2 * size - height / 2).round().long().clamp(-height, size)
    left = ((u + 1) / 2 * size - width / 2).round().long().clamp(-width, size)
    span = torch.arange(max(height, width), device=u.device)
    return top + span[:height], left + span[:width]


def _glow(size: int, device: torch.device) -> Tensor:
    """Return the ambient light at each pixel, (size, size).

    Its noise is that of a renderer with a constant seed: it is the same in all images.
    """
    normal = uniform(GRAIN_SEED, 0, torch.arange(size * size), 12).sum(1) - 6
    return (AMBIENT * (1 + GRAIN * normal)).view(size, size).to(device)


def _floor(scenes: Scenes, glow: Tensor) -> Tensor:
    """Render the floor with the shadows of the first 1..K objects, (N, K, 3, size, size)."""
    n, k = scenes.color.shape
    size = len(glow)
    points = raycast.floor_points(size, glow.device)
    light = _irradiance(points, _upwards(points), scenes.lamps)
    # Shadows are soft: half the resolution is enough.
    coarse = raycast.floor_points(size // 2, points.device)
    lit = raycast.transmittance(scenes.solids, coarse, _lamp_points(scenes, k))
    masks = torch.cat((lit, _contact(scenes.solids, coarse)), 1).unflatten(2, (size // 2, -1))
    masks = F.interpolate(masks, scale_factor=2, mode="bilinear").flatten(2).unflatten(0, (n, k))
    bounce = BOUNCE * _albedo(scenes)
    glow, steps = glow.flatten(), []
    for step in range(k):
        near = masks[:, step, -1:]
        light = light * masks[:, step, :-1]
        glow = glow * (1 - near) + bounce[:, step] * near
        steps.append(_color(light) + glow)
    return torch.stack(steps, 1).view(n, k, 3, size, size)


def _upwards(points: Tensor) -> Tensor:
    """Return the floor's normal, (3, 1)."""
    return torch.tensor([0.0, 0.0, 1.0], device=points.device)[:, None]


def _contact(solids: Solids, points: Tensor) -> Tensor:
    """Return the share of ambient light on floor points (1, 3, R) that solids take, (N, 1, R)."""
    centers = solids.centers()
    offset = points - centers
    squared = camera.dot(offset, offset)[:, None] / (centers[:, 2:] * centers[:, 2:])
    return CONTACT * (squared * squared).reciprocal()


def _albedo(scenes: Scenes) -> Tensor:
    """Return the colors of the objects, (N, K, 3, 1)."""
    palette = torch.tensor(ALBEDO, device=scenes.color.device)[:, :, None] / 255
    return palette[scenes.color]


def surfaces(
    solids: Solids, rows: Tensor, columns: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return coverage (N·K, P), points and normals (N·K, 3, P) of the solids in their boxes."""
    hits = []
    for shift in SAMPLES:
        u = (columns + 0.5 + shift * size / SOURCE_SIZE[1]) / size * 2 - 1
        v = (rows + 0.5 + shift * size / SOURCE_SIZE[0]) / size * 2 - 1
        u, v = torch.broadcast_tensors(u[:, None, :], v[:, :, None])
        rays = camera.camera_rays(u.flatten(1), v.flatten(1))
        hits.append(raycast.first_hits(solids, rays))
    (hit, points, normals), (second_hit, second_points, second_normals) = hits
    first = hit[:, None]
    points = torch.where(first, points, second_points)
    normals = torch.where(first, normals, second_normals)
    return (hit.float() + second_hit.float()) / 2, points, normals


def _shade(scenes: Scenes, points: Tensor, normals: Tensor, glow: Tensor) -> Tensor:
    """Return colors (N, K, K, 3, P) of surface points (N·K, 3, P), per object and image.

    ``glow`` is (N·K, P). The objects of an image cast shadows on each other.
    """
    n, k = scenes.color.shape
    light = _irradiance(points, normals, scenes.lamps.repeat_interleave(k, 0)).unflatten(0, (n, k))
    light = light * torch.tensor(LAMP_GAINS, device=light.device)[:, None]
    rise = normals[:, 2:]
    glow = AMBIENT_GAIN * glow[:, None] * (1 + UNDERSIDE * rise.clamp(max=0))
    sheen = (SHEEN * rise.clamp(min=0)).unflatten(0, (n, k))
    glow, points = glow.unflatten(0, (n, k)), points.unflatten(0, (n, k))
    lamps = _lamp_points(scenes, k).unflatten(0, (n, k))
    albedo = _albedo(scenes)
    images = []
    for caster in range(k):
        others = [j for j in range(k) if j != caster]
        if others:
            solids = scenes.solids[torch.arange(caster, n * k, k).repeat_interleave(k - 1)]
            lit = raycast.transmittance(
                solids, points[:, others].flatten(0, 1), lamps[:, others].flatten(0, 1)
            )
            light = light.clone()
            light[:, others] *= lit.unflatten(0, (n, k - 1))
        images.append(albedo * (_color(light) + glow) + sheen)
    return torch.stack(images, 2)


def _irradiance(points: Tensor, normals: Tensor, lamps: Tensor) -> Tensor:
    """Return the light of each lamp on surface points (N, 3, R), without shadows, (N, C, R)."""
    axes = camera.normalize(torch.tensor(LAMP_AXES, device=points.device).T)
    light = []
    for c in range(lamps.shape[2]):
        to_lamp = lamps[:, :, c, None] - points
        squared = camera.dot(to_lamp, to_lamp)
        leaving = -camera.dot(to_lamp, axes[:, c, None])
        arriving = camera.dot(to_lamp, normals)
        light.append(leaving.clamp(min=0) * arriving.clamp(min=0) / (squared * squared))
    return torch.stack(light, 1)


def _lamp_points(scenes: Scenes, k: int) -> Tensor:
    """Return four points on each lamp, for each of k objects per scene, (N·k, 3, C, 4)."""
    corners = torch.tensor(
        [[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], device=scenes.lamps.device
    )
    points = scenes.lamps[..., None] + LAMP_EDGE / 2 * corners[:, None]
    return points.repeat_interleave(k, 0)


def _color(light: Tensor) -> Tensor:
    """Return RGB (..., 3, R) of the light of the lamps (..., C, R)."""
    key, fill, back = light.unbind(-2)
    channels = zip(*LAMP_COLORS, strict=True)
    return torch.stack([a * key + b * fill + c * back for a, b, c in channels], -2)


def _srgb(x: Tensor) -> Tensor:
    """Map linear to sRGB in [0, 1], within 0.007, by roots, which are exact on all devices."""
    s1 = x.clamp(0, 1).sqrt()
    s2 = s1.sqrt()
    return 0.662002687 * s1 + 0.684122060 * s2 - 0.323583601 * s2.sqrt() - 0.0225411470 * x
