"""Batches of frames from memory, or from the accelerator itself, without worker processes."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.data.types import Batch, Frames
from iclevr_diffusion.utils.lightning_internals import batches_started, overfits
from iclevr_diffusion.utils.rng import keyed_generator


class FrameLoader:
    """Batches of one process's share of the frames; one iteration is one epoch.

    The order of an epoch is a function of (seed, epoch) alone. All processes follow the same order,
    and each takes its own slice of each global batch: W processes with batches of B see in each
    step the frames that one process with batches of W·B would see. In training, frames that do not
    fill a last global batch are dropped; they differ from epoch to epoch.

    Args:
        frames: All frames of the data set.
        indices: int64, (M,), the frames of this split.
        batch_size: Frames per process and batch.
        rank, world_size: This process among all.
        shuffle: Permute the frames, and drop the incomplete batch; otherwise all frames in order,
            distributed to the processes one by one.
        seed: Seed of the order.
        reshuffle: Whether each epoch has its own order; if not, all have that of the first, as for
            ``overfit_batches``.
        progress: Returns the current epoch and the number of its batches that were trained on
            before a resume; the iteration starts after these.
        positions: Positions of the objects in all frames, (N, L, D), or None; see :class:`Batch`.
    """

    def __init__(
        self,
        frames: Frames,
        indices: Tensor,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        positions: Tensor | None = None,
        reshuffle: bool = True,
    ) -> None:
        self.frames = frames
        self.positions = positions
        self.indices = indices
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.progress = progress
        self.reshuffle = reshuffle

    def __len__(self) -> int:
        """Batches per epoch, also after a resume."""
        if self.shuffle:
            return len(self.indices) // (self.batch_size * self.world_size)
        return -(-len(self._dealt()) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.shuffle:
            yield from map(self._batch, self._dealt().split(self.batch_size))
            return
        epoch, done = self.progress()
        generator = keyed_generator("order", self.seed, epoch if self.reshuffle else 0)
        order = self.indices[torch.randperm(len(self.indices), generator=generator)]
        order = order.to(self.frames.images.device)  # once: each copy waits for the accelerator
        for number in range(done, len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield self._batch(order[start : start + self.batch_size])

    def state_dict(self) -> dict[str, int]:
        """Return nothing: ``progress`` tells where to resume. Lightning calls this."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Do nothing, as :meth:`state_dict`."""

    def _dealt(self) -> Tensor:
        return self.indices[self.rank :: self.world_size]

    def _batch(self, indices: Tensor) -> Batch:
        images, labels = self.frames.images, self.frames.labels
        picked = indices.to(images.device)
        positions = None if self.positions is None else self.positions[picked]
        return Batch(images[picked], labels[picked], indices, positions)


def frame_loader(
    trainer: L.Trainer | None,
    frames: Frames,
    indices: Tensor,
    batch_size: int,
    shuffle: bool,
    seed: int,
    positions: Tensor | None = None,
) -> FrameLoader:
    """Return the loader of a trainer's process, which follows the progress of the training.

    It takes the arguments of :class:`FrameLoader`. Without a trainer there is one process.
    """
    of_trainer: dict[str, Any] = {}
    if trainer is not None:
        of_trainer = {
            "rank": trainer.global_rank,
            "world_size": trainer.world_size,
            "progress": lambda: (trainer.current_epoch, batches_started(trainer)),
            # Lightning itself would replace the sampler, which only its own loaders have.
            "reshuffle": not overfits(trainer),
        }
    return FrameLoader(
        frames, indices, batch_size, shuffle=shuffle, seed=seed, positions=positions, **of_trainer
    )
