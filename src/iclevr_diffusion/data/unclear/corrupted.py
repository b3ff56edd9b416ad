"""Real frames in which one object is corrupted, so that its shape is unclear."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS, SHAPES
from iclevr_diffusion.data.positions import find_growth, find_positions
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.data.unclear.targets import NUM_OUTPUTS, with_colors
from iclevr_diffusion.utils.rng import keyed_generator

STREAM = "spoiled objects"  # the key of the random numbers; another would give other frames
CUBES_MIXED = 4
MIX = (0.4, 0.6)  # weight of the other shape in a cross-fade
BLUR = (0.06, 0.15)  # standard deviation of the blur, as a share of the object's height
LEAST_BLUR = 0.7  # pixels; enough for small objects
WARP = (0.055, 0.1)  # standard deviation of a warp, as a share of the object's height
WARP_SCALE = 0.16  # standard deviation of the kernel that smooths a warp, likewise
APART = 0.3  # least distance between a changed object and any other, in [-1, 1]
CANDIDATES = 24


def corrupted_objects(frames: Frames, count: int, seed: int) -> Frames:
    """Copy up to ``count`` frames, with the newest object of each corrupted.

    A quarter of the objects are cross-faded with an object of another shape and the same color at
    the same distance from the camera; a quarter, if they are cubes, are the mean of four cubes of
    one color (others are cross-faded, too); a quarter are blurred; a quarter are warped. The
    difference of a frame to the previous one is its newest object with its shadow, so nothing else
    in the frame changes.

    Args:
        frames: In sequences that add one object at a time.
        count: Maximum number of copies; some objects find no partner.
        seed: Seed of the choice.
    """
    generator = keyed_generator(STREAM, seed)
    newest = _newest_objects(frames)
    donors = {label: newest.of_label(label) for label in range(NUM_LABELS)}
    images, labels, kept = [], [], []
    some = torch.randint(
        max(1, len(newest.rows)), (count if len(newest.rows) else 0,), generator=generator
    )
    for number, which in enumerate(some.tolist()):
        label = int(newest.labels[which])
        changed = _corrupted(frames, newest, donors, which, number, generator)
        if changed is None:
            continue
        row = int(newest.rows[which])
        images.append(changed.round().clamp(0, 255).byte())
        target = with_colors(frames.labels[row : row + 1])[0]
        target[label] -= 1
        target[NUM_LABELS + label % len(COLORS)] += 1
        labels.append(target)
        kept.append(row)
    rows = torch.tensor(kept, dtype=torch.long)
    return Frames(
        torch.stack(images) if images else frames.images[:0],
        torch.stack(labels) if labels else torch.zeros(0, NUM_OUTPUTS),
        frames.sequences[rows],
        [f"corrupted_{number:06d}_{frames.names[row]}" for number, row in enumerate(kept)],
    )


@dataclass(frozen=True)
class _Newest:
    """M objects that are new in their frame, each at a distance from all others.

    Attributes:
        rows, before: int64, (M,), the frame with and without the object.
        labels: int64, (M,).
        positions: float32, (M, 2), as :func:`~.positions.find_positions`.
    """

    rows: Tensor
    before: Tensor
    labels: Tensor
    positions: Tensor

    def of_label(self, label: int) -> Tensor:
        """Return the indices of the objects of one label."""
        return (self.labels == label).nonzero()[:, 0]


def _newest_objects(frames: Frames) -> _Newest:
    """Find the newest object of each frame with a previous one, if it is apart from others."""
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    order, grows = find_growth(frames.labels, frames.sequences)
    before, rows = order[:-1][grows], order[1:][grows]
    labels = (frames.labels[rows] - frames.labels[before]).argmax(1)
    mine = positions[rows, labels]
    others = (frames.labels[rows] > 0) & ~F.one_hot(labels, NUM_LABELS).bool()
    distances = (positions[rows] - mine[:, None]).square().sum(-1).sqrt()
    # NaN: the position is unknown, so the object may be near.
    apart = (distances > APART).logical_or(~others).all(1) & mine.isfinite().all(1)
    return _Newest(rows[apart], before[apart], labels[apart], mine[apart])


def _corrupted(
    frames: Frames,
    newest: _Newest,
    donors: dict[int, Tensor],
    which: int,
    number: int,
    generator: torch.Generator,
) -> Tensor | None:
    """Return a frame whose newest object has no clear shape, float (3, H, W) in 0..255."""
    base = frames.images[newest.before[which]].float()
    own = frames.images[newest.rows[which]].float() - base
    position = newest.positions[which]
    kind = number % 4
    if kind == 2:
        return base + _blurred(own, position, generator)
    if kind == 3:
        return base + _warped(own, position, generator)
    shape, color = divmod(int(newest.labels[which]), len(COLORS))
    cubes = kind == 1 and SHAPES[shape] == "cube"
    other = shape if cubes else (shape + 1 + number // 4 % 2) % len(SHAPES)
    candidates = donors[other * len(COLORS) + color]
    candidates = candidates[candidates != which]
    if not len(candidates):
        return None
    mixed = torch.stack(
        [
            _moved(frames, newest, candidates, position, generator)
            for _ in range(CUBES_MIXED - 1 if cubes else 1)
        ]
    ).mean(0)
    low, high = MIX
    share = low + (high - low) * float(torch.rand((), generator=generator))
    return base + torch.lerp(own, mixed, 1 - 1 / CUBES_MIXED if cubes else share)


def _moved(
    frames: Frames,
    newest: _Newest,
    candidates: Tensor,
    position: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Return one of the candidates, as the difference (3, H, W), moved to ``position``.

    Among 24 of them it is the one at about the same distance from the camera, so of about the same
    size.
    """
    some = candidates[torch.randint(len(candidates), (CANDIDATES,), generator=generator)]
    best = some[(newest.positions[some, 1] - position[1]).abs().argmin()]
    added = frames.images[newest.rows[best]].float() - frames.images[newest.before[best]].float()
    size = added.shape[-1]
    right, down = ((position - newest.positions[best]) * size / 2).round().long().tolist()
    padded = F.pad(added, (size,) * 4)
    return padded[:, size - down : 2 * size - down, size - right : 2 * size - right]


def _blurred(added: Tensor, position: Tensor, generator: torch.Generator) -> Tensor:
    """Blur an object (3, H, W) until its shape is lost."""
    low, high = BLUR
    share = low + (high - low) * float(torch.rand((), generator=generator))
    return _smoothed(added, max(LEAST_BLUR, share * _height(position, added.shape[-1])))


def _warped(added: Tensor, position: Tensor, generator: torch.Generator) -> Tensor:
    """Warp an object (3, H, W) by a smooth random field.

    Its edges become crooked like those generated by a network of too little capacity.
    """
    low, high = WARP
    share = low + (high - low) * float(torch.rand((), generator=generator))
    size = added.shape[-1]
    height = _height(position, size)
    noise = torch.randn(2, size, size, generator=generator)
    field = _smoothed(noise, WARP_SCALE * height)
    field = field / field.std() * share * height * 2 / size
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 3, size, size], align_corners=False)
    grid = grid + field.permute(1, 2, 0)[None]
    return F.grid_sample(added[None], grid, padding_mode="border", align_corners=False)[0]


def _smoothed(maps: Tensor, deviation: float) -> Tensor:
    """Convolve maps (C, H, W) with a Gaussian of that standard deviation, in pixels."""
    radius = math.ceil(2.5 * deviation)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    return F.conv2d(rows, kernel.view(1, 1, -1, 1))[:, 0]


def _height(position: Tensor, size: int) -> float:
    """Estimate the height of an object in pixels: 8 at row 16 of 64, 22 at row 48."""
    row = (float(position[1]) + 1) * 32
    return max(6.0, 8 + (row - 16) * 14 / 32) * size / 64
