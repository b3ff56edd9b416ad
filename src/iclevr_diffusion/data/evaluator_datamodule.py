"""Data for training an evaluator, and held-out sets for testing it."""

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
    corrupted_objects,
    read_unclear_images,
    shapes_in_between,
)
from iclevr_diffusion.utils.checks import check_choice, check_range

TRAIN_ON = ("both", "real", "synthetic")
HELD_OUT_SHARE = 0.1  # of the real sequences
HELD_OUT_SEQUENCES = 400  # synthetic
HELD_OUT_CORRUPTED = 900  # copies of held-out real frames
IMAGES_REPEATED = 4  # there are few images of earlier weights, and each copy is augmented anew
EMPTY_EVERY = 50  # synthetic frames per empty floor


@dataclass(frozen=True)
class UnclearSettings:
    """Training data with objects of no clear shape; see :mod:`iclevr_diffusion.data.unclear`.

    Attributes:
        sequences: Number of sequences of three synthetic frames, half of whose objects are shapes
            in between.
        corrupted: Number of real training frames in which one object is cross-faded, blurred or
            warped.
        images: Folder with images of earlier weights; None for none.
    """

    sequences: int = 4000
    corrupted: int = 12000
    images: str | Path | None = None


class EvaluatorData(L.LightningDataModule):
    """Real and synthetic frames for training, and held-out sets of both.

    Synthetic training frames have one to five objects, some with two of one label, many of them
    partly hidden by others; a few floors are empty. Synthetic held-out frames have another seed and
    the layout of real ones: ``synthetic`` with one to three objects, ``crowded`` with four or five.

    Args:
        real: The course's frames; None for none.
        train_on: ``both``, ``real`` or ``synthetic``. The others are still held out.
        sequences: Number of synthetic training sequences of five frames.
        batch_size: Frames per process and batch.
        seed: Seed of the synthetic frames and of the order.
        unclear: Training data with objects of no clear shape; None for none. With ``train_on``
            ``synthetic``, there are no corrupted real frames.

    Raises:
        ValueError: A setting is out of range, or there are no real frames to train on.
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
        check_choice("train_on", train_on, TRAIN_ON)
        if real is None and train_on != "synthetic":
            raise ValueError(
                f"train_on={train_on} needs the course's frames: data.root=…;"
                " without them use train_on=synthetic"
            )
        if unclear is not None and train_on == "real":
            raise ValueError("net.unclear=true needs train_on=both or train_on=synthetic")
        check_range("sequences", sequences, 1, MAX_SEQUENCES)
        check_range("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        if unclear is not None:
            check_range("unclear.sequences", unclear.sequences, 1, MAX_SEQUENCES)
            check_range("unclear.corrupted", unclear.corrupted, 1, MAX_SEQUENCES)
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
            self.real.prepare_data()

    def check(self, processes: int) -> None:
        """Check the data without reading the frames, and that they fill a batch of each process.

        Raises:
            UserError: Something in the data is wrong, or there are too few frames.
        """
        clear, _, _ = self._counts()
        check_fills_a_batch(clear, self.batch_size, processes)

    def batches(self, processes: int) -> tuple[int, int]:
        """Batches per process and epoch, in training and in validation.

        With corrupted objects, training has slightly fewer: not every frame can be used.
        """
        clear, unclear, held_out = self._counts()
        return (
            (clear + unclear) // (self.batch_size * processes),
            -(-held_out // (self.batch_size * processes)),
        )

    def _counts(self) -> tuple[int, int, int]:
        """Count training frames without and (at most) with unclear objects, and validation frames.

        Raises:
            UserError: Something in the data is wrong.
        """
        clear, unclear, held_out = 0, 0, STEPS * HELD_OUT_SEQUENCES
        if self.real is not None:
            train, val = split_by_sequence(self.real.sequences(), HELD_OUT_SHARE)
            held_out = len(val)
            if self.train_on != "synthetic":
                clear += len(train)
        if self.train_on != "real":
            rendered = MAX_OBJECTS * self.sequences
            clear += rendered + -(-rendered // EMPTY_EVERY)
        if self.unclear is not None:
            unclear += STEPS * self.unclear.sequences
            if self.train_on != "synthetic":
                unclear += self.unclear.corrupted
            if self.unclear.images is not None:
                images = read_unclear_images(Path(self.unclear.images).expanduser())
                unclear += IMAGES_REPEATED * len(images)
        return clear, unclear, held_out

    def setup(self, stage: str) -> None:
        """Load the real frames and render the synthetic ones; this fills ``held_out``.

        Raises:
            UserError: There are too few frames for one batch.
        """
        learn, self.held_out, self.held_out_unclear = [], {}, {}
        if self.real is not None:
            frames = self.real.load_frames()
            train, held_out = split_by_sequence(frames.sequences, HELD_OUT_SHARE)
            self.held_out["real"] = frames.take(held_out)
            if self.train_on != "synthetic":
                learn.append(frames.take(train))
        if self.train_on != "real":
            rendered = synthetic_frames(
                self.sequences,
                self.seed,
                max_objects=MAX_OBJECTS,
                distinct=False,
                huddled=True,
            )
            learn += [rendered, empty_floors(-(-len(rendered) // EMPTY_EVERY), self.seed)]
        if self.unclear is not None:
            learn += self._unclear_frames(self.unclear, learn)
        self._learn = join(learn)
        processes = self.trainer.world_size if self.trainer else 1
        check_fills_a_batch(len(self._learn), self.batch_size, processes)
        rendered = synthetic_frames(HELD_OUT_SEQUENCES, self.seed + 1, max_objects=MAX_OBJECTS)
        if self.unclear is not None:
            in_between = shapes_in_between(HELD_OUT_SEQUENCES, self.seed + 1)
            self.held_out_unclear = {"shapes in between": in_between}
            if "real" in self.held_out:
                corrupted = corrupted_objects(
                    self.held_out["real"], HELD_OUT_CORRUPTED, self.seed + 1
                )
                self.held_out_unclear["corrupted real objects"] = corrupted
        step = torch.arange(len(rendered)) % MAX_OBJECTS
        self.held_out["synthetic"] = rendered.take((step < STEPS).nonzero().flatten())
        self.held_out["crowded"] = rendered.take((step >= STEPS).nonzero().flatten())

    def _unclear_frames(self, settings: UnclearSettings, clear: Sequence[Frames]) -> list[Frames]:
        """Frame sets with unclear objects; ``clear`` are the sets without, the real one first."""
        result = [shapes_in_between(settings.sequences, self.seed)]
        if self.train_on != "synthetic":
            result.append(corrupted_objects(clear[0], settings.corrupted, self.seed))
        if settings.images is not None:
            images = read_unclear_images(Path(settings.images).expanduser())
            result += [images] * IMAGES_REPEATED
        return result

    def identity(self) -> dict[str, Any]:
        """Plain values that must match on resume: they identify the training frames."""
        result: dict[str, Any] = {"train_on": self.train_on, "sequences": self.sequences}
        if self.unclear is not None:
            result["unclear"] = {name: str(value) for name, value in asdict(self.unclear).items()}
        return result | ({} if self.real is None else self.real.identity())

    @property
    def frame_names(self) -> list[str]:
        """File names of the training frames, in the order of a batch's indices."""
        return self._learn.names

    def train_dataloader(self) -> FrameLoader:
        return self._loader(self._learn, shuffle=True)

    def val_dataloader(self) -> FrameLoader:
        return self._loader(next(iter(self.held_out.values())), shuffle=False)

    def _loader(self, frames: Frames, shuffle: bool) -> FrameLoader:
        indices = torch.arange(len(frames))
        return frame_loader(self.trainer, frames, indices, self.batch_size, shuffle, self.seed)


def join(parts: Sequence[Frames]) -> Frames:
    """Concatenate several sets of frames; their sequences stay distinct.

    If some labels are (N, L) and others (N, L + 8), all become the latter.
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
