"""Synthetic i-CLEVR: frames like the real ones, rendered from a seed, on any device.

A sequence is a growing scene: frame k shows its first k + 1 objects. Sequence i is a function of
the seed and i alone, so it does not depend on the number of sequences.
"""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.cache import as_tensor, cached_array
from iclevr_diffusion.data.conditions import TEST_LISTS, packaged_conditions
from iclevr_diffusion.data.labels import NUM_LABELS, LabelSet
from iclevr_diffusion.data.poses import sight, wrap
from iclevr_diffusion.data.positions import FIRST
from iclevr_diffusion.data.synthetic import camera
from iclevr_diffusion.data.synthetic.raycast import CUBE
from iclevr_diffusion.data.synthetic.render import render, render_empty
from iclevr_diffusion.data.synthetic.scenes import Scenes, sample_scenes
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.utils.checks import check_at_least, check_range

VERSION = 1  # changed whenever the frames of a seed change, to invalidate old caches
STEPS = 3
MAX_SEQUENCES = 1_000_000
MAX_IMAGE_SIZE = 1024
MAX_OBJECTS = 5


def synthetic_frames(
    sequences: int,
    seed: int = 0,
    image_size: int = 64,
    max_objects: int = STEPS,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    distinct: bool = True,
    huddled: bool = False,
) -> Frames:
    """Render ``sequences`` sequences of ``max_objects`` frames each.

    Args:
        sequences: Number of sequences.
        seed: Any integer of 64 bits.
        image_size: Height and width in pixels, even, in 16..1024.
        max_objects: Number of objects in the last frame of a sequence, 1..5.
        device: The device that renders; the frames are returned on the CPU.
        batch_size: Sequences rendered at once; the frames do not depend on it.
        distinct: Whether no label occurs twice in a frame, as in i-CLEVR. If not, some frames have
            two objects of one label, and a 2 in their label vector.
        huddled: Whether the objects hide each other in every other sequence.

    Raises:
        ValueError: An argument is out of range.
    """
    _check(sequences, image_size)
    check_range("max_objects", max_objects, 1, MAX_OBJECTS)
    check_at_least("batch_size", batch_size, 1)
    scenes = sample_scenes(seed, torch.arange(sequences), max_objects, distinct, huddled)
    images = render_side_by_side(scenes, image_size, device, batch_size)
    return _frames(images.flatten(0, 1), scenes)


def render_side_by_side(
    scenes: Scenes, image_size: int, device: torch.device | str = "cpu", batch_size: int = 16
) -> Tensor:
    """Call :func:`~.render.render` in threads, on ``batch_size`` scenes at once."""
    n, k = scenes.color.shape
    images = torch.empty(n, k, 3, image_size, image_size, dtype=torch.uint8)

    def render_part(start: int) -> None:
        part = slice(start, start + batch_size)
        images[part] = render(scenes[part].to(device), image_size)

    _in_threads(render_part, range(0, n, batch_size))
    return images


def empty_floors(count: int, seed: int = 0, image_size: int = 64) -> Frames:
    """Render ``count`` frames without objects, each a sequence by itself."""
    lamps = sample_scenes(seed, torch.arange(count), 1).lamps
    return Frames(
        images=render_empty(lamps, image_size),
        labels=torch.zeros(count, NUM_LABELS),
        sequences=torch.arange(count),
        names=[f"empty_{i:06d}.png" for i in range(count)],
    )


class Synthetic:
    """A source of synthetic frames, three per sequence, with this project's own condition lists.

    Args:
        sequences: Number of sequences.
        seed: Seed of the scenes.
        image_size: H = W of the frames, in pixels.
        cache: Folder for the rendered frames.

    Raises:
        ValueError: ``sequences`` or ``image_size`` is out of range.
    """

    def __init__(
        self,
        sequences: int,
        seed: int = 0,
        image_size: int = 64,
        cache: str | Path = "outputs/cache",
    ) -> None:
        _check(sequences, image_size)
        self.sequence_count = sequences
        self.seed = seed
        self.image_size = image_size
        self.cache = Path(cache).expanduser()

    def prepare_data(self) -> None:
        """Render the frames into the cache, unless they are there.

        Raises:
            UserError: The cache cannot be written.
        """
        self._images()

    def load_frames(self) -> Frames:
        """Return the frames, memory-mapped from the cache."""
        scenes = sample_scenes(self.seed, torch.arange(self.sequence_count), STEPS)
        return _frames(as_tensor(self._images()), scenes)

    def find_poses(self, frames: Frames, positions: Tensor) -> Tensor:
        """Return the poses of the objects, (N, L, 3), which are those of the scenes."""
        scenes = sample_scenes(self.seed, torch.arange(self.sequence_count), STEPS)
        cos, sin = scenes.solids.heading.unbind(1)
        headings = wrap(torch.atan2(sin, cos) - sight(scenes.solids.position))
        marks = F.pad(scenes.solids.position, (0, 1), value=camera.MARKED_HEIGHT)
        x, y = (points[0] for points in camera.project(marks.T[None]))
        headings[scenes.solids.shape != CUBE] = torch.nan
        poses = torch.stack([x, y, headings], dim=1)
        poses[::STEPS, :2] = torch.tensor(FIRST)
        result = torch.full((len(scenes), STEPS, NUM_LABELS, 3), torch.nan)
        each = torch.arange(len(scenes))
        for step, label in enumerate(scenes.labels().unbind(1)):
            result[each, step:, label] = poses.view(-1, STEPS, 3)[:, step : step + 1]
        return result.flatten(0, 1)

    def sequences(self) -> Tensor:
        return torch.arange(self.sequence_count).repeat_interleave(STEPS)

    def frame_labels(self) -> Tensor:
        return _labels(sample_scenes(self.seed, torch.arange(self.sequence_count), STEPS))

    def conditions(self) -> dict[str, list[LabelSet]]:
        """Return the packaged lists ``test`` and ``new_test``, with 32 label sets each."""
        return {name: packaged_conditions(name) for name in TEST_LISTS}

    def description(self) -> dict[str, Any]:
        return {"source": "synthetic", "sequences": self.sequence_count, "seed": self.seed}

    def identity(self) -> dict[str, Any]:
        return self.description() | {"image_size": self.image_size, "version": VERSION}

    def _images(self) -> npt.NDArray[Any]:
        settings = (VERSION, self.sequence_count, self.seed, self.image_size)
        digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        return cached_array(self.cache, f"synthetic-{digest}", self._render)

    def _render(self) -> npt.NDArray[Any]:
        return synthetic_frames(self.sequence_count, self.seed, self.image_size).images.numpy()


def _in_threads(work: Callable[[int], None], items: Iterable[int]) -> None:
    """Call ``work`` on all items, each in one thread.

    The tensors of a batch are small: several threads within an operation cost more than they save,
    above all if other programs use the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, items):
                pass
    finally:
        torch.set_num_threads(threads)


def _check(sequences: int, image_size: int) -> None:
    check_range("sequences", sequences, 1, MAX_SEQUENCES)
    if not 16 <= image_size <= MAX_IMAGE_SIZE or image_size % 2:
        raise ValueError(
            f"image_size of synthetic frames must be even, in 16..{MAX_IMAGE_SIZE},"
            f" got {image_size}"
        )


def _labels(scenes: Scenes) -> Tensor:
    """Return the labels of the frames, (N · K, L), counts."""
    return F.one_hot(scenes.labels(), NUM_LABELS).float().cumsum(1).flatten(0, 1)


def _frames(images: Tensor, scenes: Scenes) -> Frames:
    n, k = scenes.color.shape
    return Frames(
        images=images,
        labels=_labels(scenes),
        sequences=torch.arange(n).repeat_interleave(k),
        names=[f"synthetic_{i:06d}_{step}.png" for i in range(n) for step in range(k)],
    )
