"""What the evaluator learns from, and what it is judged by."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F

from iclevr_diffusion.data.datamodule import MAX_BATCH_SIZE
from iclevr_diffusion.data.loader import FrameLoader, frame_loader
from iclevr_diffusion.data.splits import check_fills_a_batch, split_by_sequence
from iclevr_diffusion.data.synthetic.dataset import (
    MAX_OBJECTS,
    MAX_SEQUENCES,
    STEPS,
    empty_floors,
    synthetic_frames,
)
from iclevr_diffusion.data.types import Frames, Source
from iclevr_diffusion.data.unclear import (
    read_unclear_images,
    shapes_in_between,
    spoiled_objects,
)

TRAIN_ON = ("both", "real", "synthetic")
HELD_OUT = 0.1  # of the real sequences
HELD_OUT_SEQUENCES = 400  # synthetic
HELD_OUT_SPOILED = 900  # of the held-out real frames
IMAGES_REPEATED = 4  # images of earlier weights: few of them, and each epoch alters each copy anew
EMPTY_EVERY = 50  # synthetic frames there is an empty floor


@dataclass(frozen=True)
class UnclearSettings:
    """What an evaluator learns of objects without a clear shape from; see :mod:`~.data.unclear`.

    sequences: of three synthetic frames each, half of whose objects are shapes in between.
    spoiled: real training frames, one object of each cross-faded, blurred or warped.
    images: a folder of images of earlier weights; None for none.
    """

    sequences: int = 1500
    spoiled: int = 9000
    images: str | Path | None = None


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
        unclear: what to learn of objects without a clear shape; None for nothing. The spoiled real
            frames are left out where ``train_on`` is ``synthetic``, all of it where it is ``real``.

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
        unclear: UnclearSettings | None = None,
    ) -> None:
        super().__init__()
        if train_on not in TRAIN_ON:
            raise ValueError(f"train_on must be one of {', '.join(TRAIN_ON)}; got {train_on!r}")
        if real is None and train_on != "synthetic":
            raise ValueError(
                f"train_on={train_on} needs the course's frames: data.root=…;"
                " without them use train_on=synthetic"
            )
        if unclear is not None and train_on == "real":
            raise ValueError("net.unclear=true needs more than real frames: train_on=both")
        numbers = [
            ("sequences", sequences, MAX_SEQUENCES),
            ("batch_size", batch_size, MAX_BATCH_SIZE),
        ]
        if unclear is not None:
            numbers += [
                ("unclear.sequences", unclear.sequences, MAX_SEQUENCES),
                ("unclear.spoiled", unclear.spoiled, MAX_SEQUENCES),
            ]
        for name, value, most in numbers:
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be in 1..{most}, got {value}")
        self.unclear = unclear
        self.real = real
        self.train_on = train_on
        self.sequences = sequences
        self.batch_size = batch_size
        self.seed = seed
        self.held_out: dict[str, Frames] = {}
        self.held_out_unclear: dict[str, Frames] = {}

    def prepare_data(self) -> None:
        if self.real is not None:
            self.real.prepare()

    def check(self, processes: int) -> None:
        """Check the data, without reading the frames, and that they fill a batch of each process.

        Raises:
            UserError: something in the data is wrong, or they are too few.
        """
        clear, _, _ = self._counts()
        check_fills_a_batch(clear, self.batch_size, processes)

    def batches(self, processes: int) -> tuple[int, int]:
        """Batches of each process an epoch, of training and of validation.

        Of training a few fewer where objects are spoiled: not every frame can be.
        """
        clear, unclear, held_out = self._counts()
        return (
            (clear + unclear) // (self.batch_size * processes),
            -(-held_out // (self.batch_size * processes)),
        )

    def _counts(self) -> tuple[int, int, int]:
        """Frames to learn from without and, at most, with unclear objects; frames to validate on.

        Raises:
            UserError: something in the data is wrong.
        """
        clear, unclear, held_out = 0, 0, STEPS * HELD_OUT_SEQUENCES
        if self.real is not None:
            train, val = split_by_sequence(self.real.sequences(), HELD_OUT)
            held_out = len(val)
            if self.train_on != "synthetic":
                clear += len(train)
        if self.train_on != "real":
            drawn = MAX_OBJECTS * self.sequences
            clear += drawn + -(-drawn // EMPTY_EVERY)
        if self.unclear is not None:
            unclear += STEPS * self.unclear.sequences
            if self.train_on != "synthetic":
                unclear += self.unclear.spoiled
            if self.unclear.images is not None:
                images = read_unclear_images(Path(self.unclear.images).expanduser())
                unclear += IMAGES_REPEATED * len(images)
        return clear, unclear, held_out

    def setup(self, stage: str) -> None:
        """Read the real frames and draw the synthetic ones; then ``held_out`` is filled.

        Raises:
            UserError: there are too few frames for one batch.
        """
        learn, self.held_out, self.held_out_unclear = [], {}, {}
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
        if self.unclear is not None:
            learn += self._unclear_frames(self.unclear, learn)
        self._learn = join(learn)
        processes = self.trainer.world_size if self.trainer else 1
        check_fills_a_batch(len(self._learn), self.batch_size, processes)
        drawn = synthetic_frames(HELD_OUT_SEQUENCES, self.seed + 1, max_objects=MAX_OBJECTS)
        if self.unclear is not None:
            in_between = shapes_in_between(HELD_OUT_SEQUENCES, self.seed + 1)
            self.held_out_unclear = {"shapes in between": in_between}
            if "real" in self.held_out:
                spoiled = spoiled_objects(self.held_out["real"], HELD_OUT_SPOILED, self.seed + 1)
                self.held_out_unclear["spoiled real objects"] = spoiled
        step = torch.arange(len(drawn)) % MAX_OBJECTS
        self.held_out["synthetic"] = take(drawn, (step < STEPS).nonzero().flatten())
        self.held_out["crowded"] = take(drawn, (step >= STEPS).nonzero().flatten())

    def _unclear_frames(self, settings: UnclearSettings, clear: Sequence[Frames]) -> list[Frames]:
        """The sets with unclear objects; ``clear`` are those without, the real ones first."""
        result = [shapes_in_between(settings.sequences, self.seed)]
        if self.train_on != "synthetic":
            result.append(spoiled_objects(clear[0], settings.spoiled, self.seed))
        if settings.images is not None:
            images = read_unclear_images(Path(settings.images).expanduser())
            result += [images] * IMAGES_REPEATED
        return result

    @property
    def frames_to_learn_from(self) -> int:
        return len(self._learn)

    def identity(self) -> dict[str, Any]:
        """What the training frames are: a run that is resumed needs the same."""
        drawn: dict[str, Any] = {"train_on": self.train_on, "sequences": self.sequences}
        if self.unclear is not None:
            drawn["unclear"] = {name: str(value) for name, value in asdict(self.unclear).items()}
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
        indices = torch.arange(len(frames))
        return frame_loader(self.trainer, frames, indices, self.batch_size, shuffle, self.seed)


def take(frames: Frames, indices: torch.Tensor) -> Frames:
    """Some of the frames, copied."""
    return Frames(
        frames.images[indices],
        frames.labels[indices],
        frames.sequences[indices],
        [frames.names[index] for index in indices.tolist()],
    )


def join(parts: Sequence[Frames]) -> Frames:
    """All frames of several sets; their sequences stay apart.

    Where some labels are (N, L) and others (N, L + 8), all become the latter.
    """
    width = max(part.labels.shape[1] for part in parts)
    sequences, offset = [], 0
    for part in parts:
        sequences.append(part.sequences + offset)
        offset += int(part.sequences.max()) + 1 if len(part) else 0
    return Frames(
        torch.cat([part.images for part in parts]),
        torch.cat([F.pad(part.labels, (0, width - part.labels.shape[1])) for part in parts]),
        torch.cat(sequences),
        [name for part in parts for name in part.names],
    )
