"""Synthetic i-CLEVR: frames like the real ones, ray cast from a seed, on any device.

A sequence is one scene that grows: step k shows its first k + 1 objects. Every number of sequence
i follows from (seed, i) alone, through a counter-based hash, so a sequence looks the same however
many are asked for and whatever the batch size.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion import labels
from iclevr_diffusion.data import raycast
from iclevr_diffusion.data.cache import as_tensor, cached_array
from iclevr_diffusion.data.conditions import read_conditions
from iclevr_diffusion.data.frames import Frames
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.labels import LabelSet

RENDERER = 1  # a new number whenever the same seed gives other frames: old caches are left alone

STEPS = 3
MAX_OBJECTS = 5
FLOOR_REACH = 3.0  # objects stand on the floor's square from -3 to 3
MIN_DISTANCE = 2.1  # between the middles of two objects
CANDIDATES = 64

# Linear RGB of CLEVR's colours, in the order of labels.COLORS.
ALBEDO = (
    (87, 87, 87), (173, 35, 35), (42, 75, 215), (29, 105, 20),
    (129, 74, 25), (129, 38, 192), (41, 208, 208), (255, 238, 51),
)  # fmt: skip

# CLEVR's lamps: key, fill and back. Each shines along its axis and moves by up to LAMP_JITTER.
LAMPS = ((6.44671, -2.90517, 4.2584), (-4.67112, -4.0136, 3.01122), (-1.1685, 2.64602, 5.81574))
LAMP_JITTER = 1.0
LAMP_AIMS = ((0.36, 1.89, -0.11), (0.42, 0.88, 0.45), (-1.51, -1.31, 0.31))
LAMP_POWER = ((5.37, 4.97, 4.29), (1.36, 1.46, 1.82), (2.35, 2.35, 2.35))  # radiance off the floor
LAMP_SIZE = 0.6
AMBIENT = (0.135, 0.135, 0.134)
OBJECT_GAIN = 1.25  # how much brighter a white object is than the floor
SHEEN = 0.006

SOURCE_WIDTH = 320  # of i-CLEVR's own frames, which were thinned out without a filter
BOX = (0.48, 0.36)  # height and width of the part of a frame that may hold one object


@dataclass(frozen=True)
class Scenes:
    """N scenes of K objects each, in the order of their appearance.

    objects: N·K solids.
    color: int64, (N, K), an index of labels.COLORS.
    lamps: float32, (N, 3, C), where the C lamps hang.
    """

    objects: raycast.Objects
    color: Tensor
    lamps: Tensor

    def labels(self) -> Tensor:
        """int64, (N, K), the objects' label indices."""
        return self.objects.shape.view_as(self.color) * len(labels.COLORS) + self.color

    def select(self, index: slice, device: torch.device | str) -> "Scenes":
        """Some of the scenes, on ``device``."""
        k = self.color.shape[1]
        start, stop, _ = index.indices(len(self.color))
        objects = self.objects.select(torch.arange(start * k, stop * k))
        return Scenes(
            raycast.Objects(*(t.to(device) for t in vars(objects).values())),
            self.color[index].to(device),
            self.lamps[index].to(device),
        )


def hash_uniform(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32, (N, count): row n depends on seed, stream and index n.

    SplitMix64 (Steele et al. 2014), applied to the counters.
    """

    def mix(x: Tensor) -> Tensor:
        x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
        x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
        return x ^ ((x >> 31) & (2**33 - 1))

    golden = -0x61C8864680B583EB
    key = mix(mix(torch.tensor(seed) * golden + stream) + index.cpu() * golden)
    bits = mix(key[:, None] + torch.arange(1, count + 1) * golden)
    return ((bits >> 40) & (2**24 - 1)).float() / 2**24


def make_scenes(seed: int, index: Tensor, max_objects: int = STEPS) -> Scenes:
    """The scenes of the sequences ``index`` (N,), with ``max_objects`` distinct labels each."""
    n = len(index)
    order = hash_uniform(seed, 0, index, labels.NUM_LABELS).argsort(dim=1, stable=True)
    label = order[:, :max_objects]
    angle = hash_uniform(seed, 1, index, max_objects) * (2 * torch.pi)
    lamps = torch.tensor(LAMPS).T
    jitter = (hash_uniform(seed, 2, index, 9).view(n, 3, 3) * 2 - 1) * LAMP_JITTER
    objects = raycast.Objects(
        (label // len(labels.COLORS)).flatten(),
        _place(seed, index, max_objects).flatten(0, 1),
        angle.flatten(),
    )
    return Scenes(objects, label % len(labels.COLORS), lamps + jitter)


def _place(seed: int, index: Tensor, max_objects: int) -> Tensor:
    """Floor positions (N, K, 2): the first at the origin, the others anywhere clear of it."""
    n = len(index)
    placed = torch.zeros(n, 1, 2)
    for k in range(1, max_objects):
        draws = hash_uniform(seed, 2 + k, index, 2 * CANDIDATES).view(n, CANDIDATES, 2)
        candidates = (draws * 2 - 1) * FLOOR_REACH
        offset = candidates[:, :, None] - placed[:, None]
        squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
        clearance = squared.amin(2).clamp(max=MIN_DISTANCE**2)
        best = clearance.argmax(1)  # the first that is clear, or else the least crowded
        placed = torch.cat((placed, candidates[torch.arange(n), best][:, None]), 1)
    return placed


def _irradiance(points: Tensor, normals: Tensor, lamps: Tensor) -> Tensor:
    """What each lamp sends to points (N, 3, R) with such normals: (N, C, R), shadows left out."""
    aims = torch.tensor(LAMP_AIMS, device=points.device).T
    axes = raycast.normalize(aims - torch.tensor(LAMPS, device=points.device).T)
    result = []
    for c in range(lamps.shape[2]):
        to_lamp = lamps[:, :, c, None] - points
        squared = raycast.dot(to_lamp, to_lamp)
        leaving = -raycast.dot(to_lamp, axes[:, c, None])
        arriving = raycast.dot(to_lamp, normals)
        result.append(leaving.clamp(min=0) * arriving.clamp(min=0) / (squared * squared))
    return torch.stack(result, 1)


def _mix_lamps(irradiance: Tensor) -> Tensor:
    """RGB (..., 3, R) of the lamps' parts (..., C, R)."""
    parts = irradiance.unbind(-2)
    return torch.stack(
        [sum(LAMP_POWER[c][rgb] * part for c, part in enumerate(parts)) + 0.0 for rgb in range(3)],
        -2,
    )


def _lamp_points(lamps: Tensor) -> Tensor:
    """Four points on each lamp, (N, 3, C, 4)."""
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], device=lamps.device)
    return lamps[..., None] + (LAMP_SIZE / 2) * corners.T[:, None]


def _to_srgb(x: Tensor) -> Tensor:
    """Linear to sRGB in [0, 1], by square roots only (within 0.003), for they round exactly."""
    s1 = x.clamp(1e-6, 1).sqrt()
    s2 = s1.sqrt()
    return 0.662002687 * s1 + 0.684122060 * s2 - 0.323583601 * s2.sqrt() - 0.0225411470 * x


def _floor(scenes: Scenes, size: int) -> Tensor:
    """Linear RGB of the floor with the first 1..K objects' shadows, (N, K, 3, size²)."""
    n, k = scenes.color.shape
    points = _floor_points(size, scenes.lamps.device)
    up = torch.tensor([0.0, 0.0, 1.0], device=points.device)[:, None]
    light = _irradiance(points, up, scenes.lamps)
    coarse = _floor_points(size // 2, points.device)
    lamps = _lamp_points(scenes.lamps).repeat_interleave(k, 0)
    lit = raycast.transmittance(scenes.objects, coarse, lamps)
    lit = lit.unflatten(2, (size // 2, size // 2))
    lit = F.interpolate(lit, size=(size, size), mode="bilinear").flatten(2).unflatten(0, (n, k))
    ambient = torch.tensor(AMBIENT, device=points.device)[:, None]
    steps, total = [], light
    for step in range(k):
        total = total * lit[:, step]
        steps.append(_mix_lamps(total) + ambient)
    return torch.stack(steps, 1)


def _floor_points(size: int, device: torch.device) -> Tensor:
    """The floor under each pixel, (1, 3, size²)."""
    grid = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(grid, grid, indexing="ij")
    rays = raycast.camera_rays(u.reshape(1, -1), v.reshape(1, -1))
    eye = torch.tensor(raycast.EYE, device=device)[:, None]
    return eye - eye[2] / rays[:, 2:] * rays


def render(scenes: Scenes, image_size: int) -> Tensor:
    """Draw every step of every scene.

    Args:
        scenes: N scenes of K objects, on the device that computes.
        image_size: height and width in pixels, even.

    Returns:
        uint8, (N, K, 3, image_size, image_size), 0..255; step k shows the first k + 1 objects.
    """
    size = image_size
    n, k = scenes.color.shape
    rows, columns = _boxes(scenes, size)
    alpha, colors = _object_layers(scenes, rows, columns, size)
    pad_y, pad_x = rows.shape[1], columns.shape[1]
    canvas = F.pad(_floor(scenes, size).unflatten(3, (size, size)), (pad_x, pad_x, pad_y, pad_y))
    width = size + 2 * pad_x
    index = ((rows + pad_y)[:, :, None] * width + (columns + pad_x)[:, None, :]).view(n, k, -1)
    flat = canvas.flatten(3)
    eye = torch.tensor(raycast.EYE[:2], device=flat.device)
    offset = (scenes.objects.position - eye).view(n, k, 2)
    far_to_near = (offset * offset).sum(2).argsort(1, descending=True)
    each = torch.arange(n, device=flat.device)
    for rank in range(k):
        which = far_to_near[:, rank]
        shown = which[:, None] <= torch.arange(k, device=flat.device)
        where = index[each, which][:, None, None].expand(-1, k, 3, -1)
        cover = (alpha[each, which][:, None] * shown[..., None])[:, :, None]
        under = flat.gather(3, where)
        flat.scatter_(3, where, under + cover * (colors[each, which] - under))
    picture = flat.unflatten(3, canvas.shape[3:])[..., pad_y:-pad_y, pad_x:-pad_x]
    return (_to_srgb(picture) * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _boxes(scenes: Scenes, size: int) -> tuple[Tensor, Tensor]:
    """Rows (N·K, h) and columns (N·K, w) of the pixels that may show each object."""
    objects = scenes.objects
    x, y = objects.position.unbind(1)
    middle = torch.stack((x, y, torch.full_like(x, raycast.RADIUS)), 1)[:, :, None]
    u, v = raycast.project(middle)
    height, width = round(BOX[0] * size), round(BOX[1] * size)
    top = ((v + 1) / 2 * size - height / 2).round().long().clamp(-height, size)
    left = ((u + 1) / 2 * size - width / 2).round().long().clamp(-width, size)
    return (
        top + torch.arange(height, device=top.device),
        left + torch.arange(width, device=top.device),
    )


def _object_layers(
    scenes: Scenes, rows: Tensor, columns: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Coverage (N, K, P) and linear RGB (N, K, step, 3, P) of each object in its own box."""
    n, k = scenes.color.shape
    footprint = 0.25 * size / SOURCE_WIDTH
    coverage, total = torch.zeros(()), torch.zeros(())
    for dx, dy in ((-footprint, -1.5 * footprint), (footprint, 1.5 * footprint)):
        u = ((columns + 0.5 + dx) / size * 2 - 1)[:, None, :]
        v = ((rows + 0.5 + dy) / size * 2 - 1)[:, :, None]
        u, v = (t.flatten(1) for t in torch.broadcast_tensors(u, v))
        hit, points, normals = raycast.first_hits(scenes.objects, raycast.camera_rays(u, v))
        color = _shade(scenes, points, normals)
        weight = hit.float().view(n, k, -1)
        coverage = coverage + weight / 2
        total = total + color * (weight / 2)[:, :, None, None]
    return coverage, total / coverage.clamp(min=0.5)[:, :, None, None]


def _shade(scenes: Scenes, points: Tensor, normals: Tensor) -> Tensor:
    """Linear RGB (N, K, step, 3, P) of surface points, in the shadow of the step's other objects."""
    n, k = scenes.color.shape
    light = _irradiance(points, normals, scenes.lamps.repeat_interleave(k, 0)).unflatten(0, (n, k))
    lamps = _lamp_points(scenes.lamps).repeat_interleave(k, 0)
    albedo = torch.tensor(ALBEDO, device=points.device)[scenes.color] / 255
    ambient = torch.tensor(AMBIENT, device=points.device)[:, None]
    points = points.unflatten(0, (n, k))
    steps = []
    own = torch.arange(k, device=points.device)
    for step in range(k):
        blocker = scenes.objects.select(
            torch.arange(n, device=points.device).repeat_interleave(k) * k + step
        )
        lit = raycast.transmittance(blocker, points.flatten(0, 1), lamps).unflatten(0, (n, k))
        light = torch.where((own == step)[:, None, None], light, light * lit)
        total = _mix_lamps(light) + ambient
        steps.append(OBJECT_GAIN * albedo[..., None] * total + SHEEN)
    return torch.stack(steps, 2)


def synthetic_frames(
    sequences: int,
    seed: int = 0,
    image_size: int = 64,
    max_objects: int = STEPS,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
) -> Frames:
    """Draw ``sequences`` sequences of ``max_objects`` frames each.

    Args:
        sequences: how many; sequence i is the same for every count.
        seed: any integer of 64 bits.
        image_size: height and width in pixels, even, at least 16.
        max_objects: objects in a sequence's last frame, 1..5.
        device: where to compute; the frames are on the CPU.
        batch_size: sequences drawn at once; it does not change the frames.

    Raises:
        ValueError: an argument is out of range.
    """
    if sequences < 1 or batch_size < 1:
        raise ValueError(f"sequences and batch_size must be positive: {sequences}, {batch_size}")
    if not 1 <= max_objects <= MAX_OBJECTS:
        raise ValueError(f"max_objects must be in 1..{MAX_OBJECTS}, got {max_objects}")
    if image_size < 16 or image_size % 2:
        raise ValueError(f"image_size must be even and at least 16, got {image_size}")
    scenes = make_scenes(seed, torch.arange(sequences), max_objects)
    images = torch.empty((sequences, max_objects, 3, image_size, image_size), dtype=torch.uint8)
    for start in range(0, sequences, batch_size):
        part = slice(start, start + batch_size)
        images[part] = render(scenes.select(part, device), image_size).cpu()
    return _label_frames(images.flatten(0, 1), scenes)


def _label_frames(images: Tensor, scenes: Scenes) -> Frames:
    n, k = scenes.color.shape
    one_hot = F.one_hot(scenes.labels(), labels.NUM_LABELS).float()
    return Frames(
        images=images,
        labels=one_hot.cumsum(1).flatten(0, 1),
        sequences=torch.arange(n).repeat_interleave(k),
        names=[f"synthetic_{i:06d}_{step}.png" for i in range(n) for step in range(k)],
    )


class Synthetic:
    """The synthetic source: sequences of three frames, and this project's own condition lists.

    Args:
        sequences: how many sequences.
        seed: of the scenes.
        image_size: height and width of the frames in pixels.
        cache: the folder that keeps the drawn frames.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        sequences: int,
        seed: int = 0,
        image_size: int = 64,
        cache: str | Path = "outputs/cache",
    ) -> None:
        if sequences < 1:
            raise UserError(f"synthetic data: sequences must be at least 1, got {sequences}")
        if image_size < 16 or image_size % 2:
            raise UserError(
                f"synthetic data: image_size must be even and at least 16, got {image_size}"
            )
        self.sequences, self.seed, self.image_size = sequences, seed, image_size
        self.cache = Path(cache)

    def prepare(self) -> None:
        """Draw the frames into the cache, if they are not there yet.

        Raises:
            UserError: the cache folder cannot be written.
        """
        self._images()

    def frames(self) -> Frames:
        """The frames, memory-mapped from the cache."""
        return _label_frames(
            as_tensor(self._images()), make_scenes(self.seed, torch.arange(self.sequences))
        )

    def conditions(self) -> dict[str, list[LabelSet]]:
        """This project's own lists ``test`` and ``new_test``, 32 label sets each."""
        folder = resources.files("iclevr_diffusion.data") / "conditions"
        with resources.as_file(folder) as path:
            return {name: read_conditions(path / f"{name}.json") for name in ("test", "new_test")}

    def _images(self) -> np.ndarray:
        settings = (RENDERER, self.sequences, self.seed, self.image_size)
        key = f"synthetic-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"
        return cached_array(
            self.cache,
            key,
            lambda: synthetic_frames(self.sequences, self.seed, self.image_size).images.numpy(),
        )
