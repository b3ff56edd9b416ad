"""Random scenes like i-CLEVR's, each a function of a seed and its index alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS
from iclevr_diffusion.data.synthetic.camera import CLEARANCE, EYE, REACH
from iclevr_diffusion.data.synthetic.raycast import Solids

CANDIDATES = 64
HUDDLE = (1.3, 2.6)  # distances between the centers of objects that hide each other
HUDDLE_ANGLE = 0.6  # maximum angle between them and the line of sight, in radians

# The key, fill and back lamp, fitted to real frames. Each coordinate differs by up to
# LAMP_JITTER between scenes.
LAMPS = ((6.43, -2.98, 4.01), (-4.61, -4.05, 2.78), (-0.99, 2.97, 5.35))
LAMP_JITTER = 1.0


@dataclass(frozen=True)
class Scenes:
    """N scenes of K objects each, in the order of their appearance.

    Attributes:
        solids: N · K solids, scene by scene.
        color: int64, (N, K), indices of labels.COLORS.
        lamps: float32, (N, 3, C), positions of C lamps.
    """

    solids: Solids
    color: Tensor
    lamps: Tensor

    def __len__(self) -> int:
        return len(self.color)

    def __getitem__(self, part: slice) -> "Scenes":
        start, stop, _ = part.indices(len(self))
        k = self.color.shape[1]
        return Scenes(self.solids[start * k : stop * k], self.color[part], self.lamps[part])

    def to(self, device: torch.device | str) -> "Scenes":
        return Scenes(self.solids.to(device), self.color.to(device), self.lamps.to(device))

    def labels(self) -> Tensor:
        """Return the label indices of the objects, int64, (N, K)."""
        return self.solids.shape.view_as(self.color) * len(COLORS) + self.color


def sample_scenes(
    seed: int, index: Tensor, max_objects: int, distinct: bool = True, huddled: bool = False
) -> Scenes:
    """Sample the scenes with indices ``index``, int64 (N,), of ``max_objects`` objects each.

    The first object is at the origin. If labels need not be ``distinct``, one in eight of the
    others has the label of the one before. In ``huddled`` scenes with an odd index, each object is
    in front of another or behind it, as seen from the camera.
    """
    n = len(index)
    numbers = uniform(seed, 0, index, NUM_LABELS)
    label = numbers.argsort(dim=1, stable=True)[:, :max_objects]
    if not distinct:
        label[:, 1:] = torch.where(numbers[:, 1:max_objects] < 1 / 8, label[:, :-1], label[:, 1:])
    turn = uniform(seed, 1, index, max_objects).flatten() * (2 * torch.pi)
    jitter = (uniform(seed, 2, index, 9).view(n, 3, 3) * 2 - 1) * LAMP_JITTER
    solids = Solids(
        shape=(label // len(COLORS)).flatten(),
        position=_positions(seed, index, max_objects, huddled).flatten(0, 1),
        heading=torch.stack((turn.cos(), turn.sin()), 1),
        form=torch.ones(len(turn), 2),
    )
    return Scenes(solids, label % len(COLORS), torch.tensor(LAMPS).T + jitter)


def _positions(seed: int, index: Tensor, max_objects: int, huddled: bool) -> Tensor:
    """Sample floor positions (N, K, 2): the first at the origin, the others apart from these."""
    n = len(index)
    huddles = (index % 2 == 1) & huddled
    clearance = torch.where(huddles, HUDDLE[0], CLEARANCE)[:, None]
    placed = torch.zeros(n, 1, 2)
    for k in range(1, max_objects):
        numbers = uniform(seed, 2 + k, index, 2 * CANDIDATES).view(n, CANDIDATES, 2)
        candidates = (numbers * 2 - 1) * REACH
        if huddled:
            in_line = placed[:, torch.arange(CANDIDATES) % k] + _in_line_of_sight(numbers)
            candidates = torch.where(huddles[:, None, None], in_line, candidates)
        x, y = (candidates[:, :, None] - placed[:, None]).unbind(3)
        distance = (x * x + y * y).sqrt().amin(2)
        distance = torch.where(candidates.abs().amax(2) <= REACH, distance, 0.0)
        # The first candidate that is far enough from the others, or else the farthest.
        choice = torch.minimum(distance, clearance).argmax(1)
        placed = torch.cat((placed, candidates[torch.arange(n), choice][:, None]), 1)
    return placed


def _in_line_of_sight(numbers: Tensor) -> Tensor:
    """Map numbers in [0, 1) to steps (..., 2) on the floor, towards the camera or away from it."""
    side = torch.where(numbers[..., 0] < 0.5, 1.0, -1.0)
    low, high = HUDDLE
    length = side * (low + (high - low) * (2 * numbers[..., 0] % 1))
    angle = math.atan2(EYE[1], EYE[0]) + HUDDLE_ANGLE * (2 * numbers[..., 1] - 1)
    return torch.stack((length * angle.cos(), length * angle.sin()), -1)


def uniform(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """Random numbers in [0, 1), float32, (N, count); row n is a function of seed, stream, index[n].

    They are those of SplitMix64 (Steele, Lea and Flood 2014), whose only state is a counter, so all
    rows are computed at once, and none depends on the others.
    """
    key = _mix(_mix(torch.tensor(seed) * _GOLDEN + stream) + index * _GOLDEN)
    bits = _mix(key[:, None] + torch.arange(1, count + 1) * _GOLDEN)
    return ((bits >> 40) & (2**24 - 1)).float() / 2**24


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # int64 is signed; products wrap around in the same way


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))
