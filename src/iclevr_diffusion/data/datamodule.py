"""Frames as batches: from memory or from the device itself, without worker processes."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.types import Batch, Frames, Source
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.lightning_internals import batches_started, overfits
from iclevr_diffusion.utils.rng import keyed_generator

SPLIT_SEED = 0
MAX_BATCH_SIZE = 1_000_000
DEVICE_MEMORY_SHARE = 0.25

log = logging.getLogger(__name__)


class FrameLoader:
    """Batches of one process's share of the frames, an epoch an iteration.

    The order of an epoch is a function of (seed, epoch) alone. Every process walks through the
    same order and takes its own slice of each global batch, so W processes with batches of B see
    in each step the frames that one process with batches of W·B would see. Training drops the
    frames that do not fill a last global batch; they differ from epoch to epoch.

    Args:
        frames: all frames of the data source.
        indices: int64, (M,), the frames of this split.
        batch_size: frames a process a batch.
        rank, world_size: this process among all.
        shuffle: permute, and drop the incomplete batch; otherwise all frames, in order, dealt to
            the processes one by one.
        seed: of the order.
        reshuffle: whether every epoch has an order of its own; otherwise all have that of the
            first, for ``overfit_batches``.
        progress: gives the current epoch, and how many of its batches were trained on before a
            resume; an iteration begins after those.
        positions: of all frames, (N, L, 2), for those who ask; see :class:`Batch`.
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
        """Batches an epoch; it stays the same after a resume."""
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
        order = order.to(self.frames.images.device)  # at once: each copy makes that wait
        for number in range(done, len(self)):
            start = (number * self.world_size + self.rank) * self.batch_size
            yield self._batch(order[start : start + self.batch_size])

    def state_dict(self) -> dict[str, int]:
        """Nothing: ``progress`` tells a resumed run where it stood. Lightning asks for it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing, as :meth:`state_dict`."""

    def _dealt(self) -> Tensor:
        return self.indices[self.rank :: self.world_size]

    def _batch(self, indices: Tensor) -> Batch:
        images, labels = self.frames.images, self.frames.labels
        picked = indices.to(images.device)
        positions = None if self.positions is None else self.positions[picked]
        return Batch(images[picked], labels[picked], indices, positions)


class ICLEVRDataModule(L.LightningDataModule):
    """Training and validation batches of a data source.

    Args:
        source: where the frames come from.
        batch_size: frames a process a batch.
        val_fraction: share of the sequences held out. The split goes by sequence, since frames of
            one sequence are near copies, and does not depend on ``seed``.
        device_resident: ``auto`` keeps the frames on the accelerator where they take at most a
            quarter of its free memory; ``true`` or ``false`` forces it.
        seed: of the order of the training frames.
        with_positions: whether batches tell where each object stands.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 64,
        val_fraction: float = 0.02,
        device_resident: str | bool = "auto",
        seed: int = 0,
        with_positions: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"data.batch_size must be in 1..{MAX_BATCH_SIZE}, got {batch_size}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction must be in [0, 1), got {val_fraction}")
        if device_resident not in ("auto", True, False):
            raise ValueError(
                f"data.device_resident must be auto, true or false; got {device_resident!r}"
            )
        self.source = source
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.device_resident = device_resident
        self.seed = seed
        self.with_positions = with_positions
        self.positions: Tensor | None = None  # of all frames, after setup()
        self._frames: Frames | None = None

    def prepare_data(self) -> None:
        """Check the data and fill its cache; Lightning calls this in one process."""
        self.source.prepare()

    def check(self, processes: int) -> None:
        """Check the data, without reading the frames, and that they fill a batch of each process.

        Raises:
            UserError: something in the data is wrong, or they are too few.
        """
        self._split(self.source.sequences(), processes)

    def batches(self, processes: int) -> tuple[int, int]:
        """Batches of each process an epoch, of training and of validation; after check()."""
        global_batch = self.batch_size * processes
        return len(self.train_indices) // global_batch, -(-len(self.val_indices) // global_batch)

    def setup(self, stage: str) -> None:
        """Load the frames, split them, and put them where batches will be cut.

        Raises:
            UserError: there are too few frames for one batch; or the network wants to know where
                objects stand, and of most frames that cannot be told.
        """
        frames = self.source.frames()
        self._split(frames.sequences, self.trainer.world_size if self.trainer else 1)
        self._frames = self._place(frames)
        if self.with_positions and self.positions is None:
            positions = find_positions(frames.images, frames.labels, frames.sequences)
            check_are_told(positions[self.train_indices])
            self.positions = positions.to(self._frames.images.device)

    @property
    def frames(self) -> Frames:
        """All frames of the source, after setup()."""
        if self._frames is None:
            raise RuntimeError("setup() has not run")
        return self._frames

    @property
    def frame_names(self) -> list[str]:
        """The file names that a batch's indices stand for."""
        return self.frames.names

    def identity(self) -> dict[str, Any]:
        """What the training frames are: a run that is resumed needs the same."""
        return self.source.identity() | {"val_fraction": self.val_fraction}

    def conditions(self) -> dict[str, list[LabelSet]]:
        """The condition lists of the source, by name."""
        return self.source.conditions()

    def train_dataloader(self) -> FrameLoader:
        return self._loader(self.train_indices, shuffle=True)

    def val_dataloader(self) -> FrameLoader | list[FrameLoader]:
        return self._loader(self.val_indices, shuffle=False) if len(self.val_indices) else []

    def _loader(self, indices: Tensor, shuffle: bool) -> FrameLoader:
        trainer = self.trainer
        return FrameLoader(
            self.frames,
            indices,
            self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            shuffle=shuffle,
            seed=self.seed,
            progress=lambda: training_progress(trainer),
            positions=self.positions,
            reshuffle=reshuffles(trainer),
        )

    def _split(self, sequences: Tensor, processes: int) -> None:
        self.train_indices, self.val_indices = split_by_sequence(sequences, self.val_fraction)
        check_fills_a_batch(len(self.train_indices), self.batch_size, processes)
        if 0 < len(self.val_indices) < processes:
            raise UserError(
                f"{len(self.val_indices)} validation frames are too few for {processes} processes;"
                " raise data.val_fraction, or set it to 0"
            )

    def _place(self, frames: Frames) -> Frames:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cpu" or self.device_resident is False:
            return frames
        if self.device_resident == "auto" and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if frames.images.nbytes > DEVICE_MEMORY_SHARE * free:
                return frames
        return Frames(
            frames.images.to(device), frames.labels.to(device), frames.sequences, frames.names
        )


def check_are_told(positions: Tensor) -> None:
    """Refuse training frames of most of which it cannot be told where their objects stand.

    Args:
        positions: (N, L, 2), NaN where it cannot be told.

    Raises:
        UserError: it cannot be told of more than half.
    """
    unknown = int((~positions.isfinite()).any(-1).any(-1).sum())
    if unknown > len(positions) / 2:
        raise UserError(
            f"of {unknown} of {len(positions)} training frames it cannot be told where the"
            " objects"
            " stand, as they do not come in sequences that add one object a frame; train with"
            " net.positions=false"
        )
    if unknown > len(positions) / 20:
        log.warning(
            "of %d of %d training frames it cannot be told where their objects stand; they train"
            " the estimate without labels",
            unknown,
            len(positions),
        )


def check_fills_a_batch(frames: int, batch_size: int, processes: int) -> None:
    """Refuse a training set that does not fill one batch of all processes.

    Raises:
        UserError: it does not.
    """
    needed = batch_size * processes
    if frames < needed:
        raise UserError(
            f"{frames} training frames do not fill one batch of {needed}; lower data.batch_size"
        )


def training_progress(trainer: L.Trainer | None) -> tuple[int, int]:
    """The epoch that trains now, and how many of its batches a resumed run has behind it."""
    if trainer is None:
        return 0, 0
    return trainer.current_epoch, batches_started(trainer)


def reshuffles(trainer: L.Trainer | None) -> bool:
    """Whether every epoch has an order of its own: not where a part of the frames is overfitted.

    Lightning itself would replace the sampler, which only its own loaders have.
    """
    return trainer is None or not overfits(trainer)


def split_by_sequence(sequences: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the validation frames, both ascending, no sequence in both.

    Args:
        sequences: int64, (N,), the sequence of each frame.
        val_fraction: share of the sequences that go to validation, in [0, 1). Above zero, at least
            one does, unless there is only one.
    """
    unique = sequences.unique()
    count = round(val_fraction * len(unique))
    if val_fraction > 0:
        count = min(max(count, 1), len(unique) - 1)
    generator = keyed_generator("split", SPLIT_SEED)
    held_out = unique[torch.randperm(len(unique), generator=generator)[:count]]
    is_val = torch.isin(sequences, held_out)
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()
