"""What the evaluator learns from, and what it is judged by."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from iclevr_diffusion.data.datamodule import (
    MAX_BATCH_SIZE,
    FrameLoader,
    check_fills_a_batch,
    split_by_sequence,
    training_progress,
)
from iclevr_diffusion.data.frames import Frames, Source
from iclevr_diffusion.data.synthetic import (
    MAX_OBJECTS,
    MAX_SEQUENCES,
    STEPS,
    empty_floors,
    synthetic_frames,
)

TRAIN_ON = ("both", "real", "synthetic")
HELD_OUT = 0.1  # of the real sequences
HELD_OUT_SEQUENCES = 400  # synthetic
EMPTY_EVERY = 50  # synthetic frames there is an empty floor


class EvaluatorData(L.LightningDataModule):
    """Real and synthetic frames to learn from, and held-out sets of both.

    The synthetic ones to learn from have one to five objects, some two of one label, many of them
    hidden in part by others; a few floors are empty. The held-out ones come from another seed and
    are laid out as real ones: ``synthetic`` with one to three objects, ``crowded`` with four, five.

    Args:
        real: the course's frames; None to do without.
        train_on: ``both``, ``real`` or ``synthetic``. What is left out is still held out.
        sequences: synthetic sequences to learn from, of five frames each.
        batch_size: frames a process a batch.
        seed: of the synthetic frames and of the order.

    Raises:
        ValueError: a setting is out of range, or there are no real frames to train on.
    """

    def __init__(
        self,
        real: Source | None,
        train_on: str = "both",
        sequences: int = 6000,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if train_on not in TRAIN_ON:
            raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}; got {train_on!r}")
        if real is None and train_on != "synthetic":
            raise ValueError(
                f"train_on={train_on} needs the course's frames: data.root=…;"
                " without them use train_on=synthetic"
            )
        for name, value, most in (
            ("sequences", sequences, MAX_SEQUENCES),
            ("batch_size", batch_size, MAX_BATCH_SIZE),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"data.{name} must be in 1..{most}, got {value}")
        self.real = real
        self.train_on = train_on
        self.sequences = sequences
        self.batch_size = batch_size
        self.seed = seed
        self.held_out: dict[str, Frames] = {}

    def prepare_data(self) -> None:
        if self.real is not None:
            self.real.prepare()

    def check(self, processes: int) -> None:
        """Check the data, without reading the frames, and that they fill a batch of each process.

        Raises:
            UserError: something in the data is wrong, or they are too few.
        """
        count = 0
        if self.real is not None:
            sequences = self.real.sequences()
            if self.train_on != "synthetic":
                count += len(split_by_sequence(sequences, HELD_OUT)[0])
        if self.train_on != "real":
            drawn = MAX_OBJECTS * self.sequences
            count += drawn + -(-drawn // EMPTY_EVERY)
        check_fills_a_batch(count, self.batch_size, processes)

    def setup(self, stage: str) -> None:
        """Read the real frames and draw the synthetic ones; then ``held_out`` is filled.

        Raises:
            UserError: there are too few frames for one batch.
        """
        learn, self.held_out = [], {}
        if self.real is not None:
            frames = self.real.frames()
            train, held_out = split_by_sequence(frames.sequences, HELD_OUT)
            self.held_out["real"] = take(frames, held_out)
            if self.train_on != "synthetic":
                learn.append(take(frames, train))
        if self.train_on != "real":
            drawn = synthetic_frames(
                self.sequences,
                self.seed,
                max_objects=MAX_OBJECTS,
                distinct=False,
                huddled=True,
            )
            learn += [drawn, empty_floors(-(-len(drawn) // EMPTY_EVERY), self.seed)]
        self._learn = join(learn)
        processes = self.trainer.world_size if self.trainer else 1
        check_fills_a_batch(len(self._learn), self.batch_size, processes)
        drawn = synthetic_frames(HELD_OUT_SEQUENCES, self.seed + 1, max_objects=MAX_OBJECTS)
        step = torch.arange(len(drawn)) % MAX_OBJECTS
        self.held_out["synthetic"] = take(drawn, (step < STEPS).nonzero().flatten())
        self.held_out["crowded"] = take(drawn, (step >= STEPS).nonzero().flatten())

    @property
    def frames_to_learn_from(self) -> int:
        return len(self._learn)

    def identity(self) -> dict[str, Any]:
        """What the training frames are: a run that is resumed needs the same."""
        drawn = {"train_on": self.train_on, "sequences": self.sequences}
        return drawn | ({} if self.real is None else self.real.identity())

    @property
    def frame_names(self) -> list[str]:
        """The file names that a training batch's indices stand for."""
        return self._learn.names

    def train_dataloader(self) -> FrameLoader:
        return self._loader(self._learn, shuffle=True)

    def val_dataloader(self) -> FrameLoader:
        return self._loader(next(iter(self.held_out.values())), shuffle=False)

    def _loader(self, frames: Frames, shuffle: bool) -> FrameLoader:
        trainer = self.trainer
        return FrameLoader(
            frames,
            torch.arange(len(frames)),
            self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            shuffle=shuffle,
            seed=self.seed,
            progress=lambda: training_progress(trainer),
        )


def take(frames: Frames, indices: torch.Tensor) -> Frames:
    """Some of the frames, copied."""
    return Frames(
        frames.images[indices],
        frames.labels[indices],
        frames.sequences[indices],
        [frames.names[index] for index in indices.tolist()],
    )


def join(parts: Sequence[Frames]) -> Frames:
    """All frames of several sets; their sequences stay apart."""
    sequences, offset = [], 0
    for part in parts:
        sequences.append(part.sequences + offset)
        offset += int(part.sequences.max()) + 1
    return Frames(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat(sequences),
        [name for part in parts for name in part.names],
    )
