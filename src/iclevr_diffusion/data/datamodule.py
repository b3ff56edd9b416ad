"""The data module that a training uses: one for i-CLEVR's frames, and a base for your own."""

import json
from abc import ABC, abstractmethod
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.holdout import Holdout, Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet, Vocabulary
from iclevr_diffusion.data.loader import FrameLoader, frame_loader
from iclevr_diffusion.data.poses import encode_poses
from iclevr_diffusion.data.positions import (
    PositionPrior,
    check_positions_known,
    find_positions,
    fit_prior,
)
from iclevr_diffusion.data.splits import check_fills_a_batch, split_by_sequence
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.utils.checks import check_range
from iclevr_diffusion.utils.errors import UserError

MAX_BATCH_SIZE = 1_000_000
DEVICE_MEMORY_SHARE = 0.25


class DataModule(L.LightningDataModule, ABC):
    """Labeled images in batches. Subclass it to train on a data set of your own.

    A subclass implements :meth:`load_frames`, :meth:`conditions` and :meth:`description`, sets
    ``image_size``, and sets ``vocabulary`` if its labels are not i-CLEVR's::

        class Shapes(DataModule):
            vocabulary = Vocabulary(["circle", "square"])
            image_size = 32

            def load_frames(self): return Frames(images, labels)
            def conditions(self): return {"validation": [("circle",), ("circle", "square")]}
            def description(self): return {"source": "shapes"}

    The frames are split into training and validation by their sequences, kept in memory or on the
    accelerator, and cut into batches there.

    Args:
        batch_size: Frames per process and batch.
        val_fraction: Share of the sequences held out. The split is by sequence, since frames of one
            sequence are near copies, and does not depend on any seed.
        device_resident: ``auto`` keeps the frames on the accelerator if they take at most a quarter
            of its free memory; ``true`` or ``false`` forces it.
        holdout: Label sets that training does not show: frames with them are left out of training
            and validation, and no checkpoint is chosen by them; None for none.

    Attributes:
        vocabulary: Names of the L labels.
        image_size: H = W, in pixels.
        crops: Settings of training crops; None to train on whole frames.
        order_seed: Seed of the order of the training frames; the command sets it.
        with_positions: Whether batches include the positions of the objects; the command sets it
            for a network that takes them.
        with_headings: Whether these come with headings; set by the command, too.
        positions: Positions in all frames, (N, L, 2 or 4), after :meth:`setup`; None without.
        held_out: One line on what the holdout leaves, after :meth:`check`; empty without.

    Raises:
        ValueError: A setting is out of range.
    """

    vocabulary: Vocabulary = ICLEVR_LABELS
    image_size: int
    crops: Crops | None = None
    order_seed: int = 0
    with_positions: bool = False
    with_headings: bool = False
    holdout: Holdout | None = None
    held_out: str = ""

    def __init__(
        self,
        batch_size: int = 64,
        val_fraction: float = 0.02,
        device_resident: str | bool = "auto",
        holdout: Holdout | None = None,
    ) -> None:
        super().__init__()
        check_range("batch_size", batch_size, 1, MAX_BATCH_SIZE)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if device_resident not in ("auto", True, False):
            raise ValueError(
                f"device_resident must be auto, true or false; got {device_resident!r}"
            )
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.device_resident = device_resident
        self.holdout = holdout
        self.positions: Tensor | None = None
        self._loaded: Frames | None = None  # before setup() moves them
        self._frames: Frames | None = None

    @abstractmethod
    def load_frames(self) -> Frames:
        """Load all frames. Called once in every process, after :meth:`prepare_data`.

        Every process calls ``prepare_data`` at its start, possibly at the same time as others: if
        it downloads something, it must write it atomically.
        """

    @abstractmethod
    def conditions(self) -> dict[str, list[LabelSet]]:
        """Return the condition lists to sample and score, by name.

        One of them is ``validation``; the best checkpoint is chosen by it.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Describe the data in plain values, one of them ``source``; saved with the weights."""

    def sequences(self) -> Tensor:
        """Sequence of each frame, int64, (N,). Override it if it needs no :meth:`load_frames`.

        Raises:
            UserError: Something in the data is wrong.
        """
        return self._load_before_setup().sequences

    def frame_labels(self) -> Tensor:
        """Labels of all frames, (N, L). Override it if they need no :meth:`load_frames`.

        Raises:
            UserError: Something in the data is wrong.
        """
        return self._load_before_setup().labels

    def scored_conditions(self) -> dict[str, list[LabelSet]]:
        """Return the condition lists that a training samples and scores.

        With a holdout, as :meth:`.holdout.Holdout.scored_conditions`.

        Raises:
            UserError: A setting of the holdout does not fit the labels, or it leaves no condition
                to choose by.
        """
        split = self.holdout_split()
        if self.holdout is None or split is None:
            return self.conditions()
        return self.holdout.scored_conditions(self.conditions(), split, self.vocabulary)

    def holdout_split(self) -> Split | None:
        """Return what weights keep of the split; None without a holdout.

        Raises:
            UserError: As :meth:`scored_conditions`.
        """
        if self.holdout is None:
            return None
        labels = self.frame_labels()
        train, _ = self._indices(labels, self.sequences())
        return self.holdout.split(labels[train], self.vocabulary)

    def identity(self) -> dict[str, Any]:
        """Plain values that must match on resume: they identify the training frames."""
        return self.description() | {"val_fraction": self.val_fraction}

    def find_positions(self, frames: Frames) -> Tensor:
        """Positions of the objects, (N, L, 2), as :func:`~.positions.find_positions`."""
        if frames.positions is not None:
            return frames.positions
        return find_positions(frames.images, frames.labels, frames.sequences)

    def find_poses(self, frames: Frames, positions: Tensor) -> Tensor:
        """Poses of the objects, (N, L, 3), as :func:`~.poses.find_poses`.

        Override it for a network with ``headings``, such as that of ``experiment=quickstart``.

        Raises:
            UserError: They are unknown.
        """
        raise UserError(
            "this data module does not give the poses of objects: set net.headings=false, or"
            " override find_poses()"
        )

    def check(self, processes: int) -> None:
        """Check the data, and that the frames fill a batch of each process.

        Raises:
            UserError: Something in the data, its description or a condition list is wrong, frames
                have another dtype or shape than :class:`.Frames` says, or there are too few.
        """
        self._check_description()
        conditions = self.conditions()
        if CHOOSE_BY not in conditions:
            raise UserError(f"the data module's conditions() need a list named {CHOOSE_BY}")
        for name, label_sets in conditions.items():
            if not label_sets:
                raise UserError(f"the data module's list {name} is empty")
            texts = [one for one in cast(list[object], label_sets) if isinstance(one, str)]
            if texts:
                raise UserError(
                    f"the data module's list {name} needs tuples of names: ({texts[0]!r:.60},)"
                )
            self.vocabulary.encode_all(label_sets)
        labels = None if self.holdout is None else self.frame_labels()
        self._split(labels, self.sequences(), processes)

    def _check_description(self) -> None:
        """Check the description, which is saved as JSON, and in checkpoints without pickles."""
        description = self.description()
        if not isinstance(description, dict) or not isinstance(description.get("source"), str):
            raise UserError("the data module's description() needs a text named source")
        try:
            json.dumps(description)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the data module's description() needs values that JSON can hold: {error}"
            ) from error

    def batches(self, processes: int) -> tuple[int, int]:
        """Batches per process and epoch, in training and in validation; call check() first."""
        global_batch = self.batch_size * processes
        return len(self.train_indices) // global_batch, -(-len(self.val_indices) // global_batch)

    def setup(self, stage: str) -> None:
        """Load the frames, split them, and move them to where batches will be cut.

        Raises:
            UserError: Frames have another dtype or shape than :class:`.Frames` says; there are too
                few for one batch; or positions are needed, and those of most frames are unknown.
        """
        frames = self._load()
        processes = self.trainer.world_size if self.trainer else 1
        self._split(frames.labels, frames.sequences, processes)
        self._frames = self._moved(frames)
        if self.with_positions and self.positions is None:
            positions = self.find_positions(frames)
            check_positions_known(positions[self.train_indices])
            if self.with_headings:
                positions = encode_poses(positions, self.find_poses(frames, positions))
            self.positions = positions.to(self._frames.images.device)

    @property
    def is_set_up(self) -> bool:
        """Whether setup() has run."""
        return self._frames is not None

    @property
    def frames(self) -> Frames:
        """All frames, after setup()."""
        if self._frames is None:
            raise RuntimeError("setup() has not run")
        return self._frames

    @property
    def frame_names(self) -> list[str]:
        """File names of the frames, in the order of a batch's indices."""
        return self.frames.names

    def train_images(self) -> Tensor:
        """Images of the training frames, uint8, (M, 3, H, W), after setup()."""
        return self.frames.images[self.train_indices]

    def frames_to_measure(self) -> Tensor:
        """Return the indices of frames to measure a trained network on, after setup().

        They are validation frames or, if there are none, training frames. With positions, those
        with an unknown one are left out.
        """
        for indices in (self.val_indices, self.train_indices):
            if self.positions is not None:
                known = self.positions[indices].isfinite().all(-1).all(-1)
                indices = indices[known.to(indices.device)]
            if len(indices):
                return indices
        raise RuntimeError("no frame has known positions")

    def position_prior(self) -> PositionPrior | None:
        """Return the prior over positions, fitted to training frames; None without positions."""
        if self.positions is None:
            return None
        train = self.train_indices
        return fit_prior(self.frames.labels[train], self.positions[train])

    def train_dataloader(self) -> FrameLoader:
        return self._loader(self.train_indices, shuffle=True)

    def val_dataloader(self) -> FrameLoader | list[FrameLoader]:
        return self._loader(self.val_indices, shuffle=False) if len(self.val_indices) else []

    def _loader(self, indices: Tensor, shuffle: bool) -> FrameLoader:
        return frame_loader(
            self.trainer,
            self.frames,
            indices,
            self.batch_size,
            shuffle,
            self.order_seed,
            self.positions,
        )

    def _load_before_setup(self) -> Frames:
        if self._loaded is None:
            self.prepare_data()
        return self._load()

    def _load(self) -> Frames:
        """Load the frames once, and check them."""
        if self._loaded is None:
            self._loaded = self.load_frames()
            self._check_frames(self._loaded)
        return self._loaded

    def _check_frames(self, frames: Frames) -> None:
        count, size = len(frames.images), self.image_size
        wanted = {
            "images": (torch.uint8, (count, 3, size, size)),
            "labels": (torch.float32, (count, len(self.vocabulary))),
            "sequences": (torch.int64, (count,)),
        }
        for name, (dtype, shape) in wanted.items():
            found = getattr(frames, name)
            if (found.dtype, found.shape) != (dtype, shape):
                raise UserError(
                    f"the data module's load_frames() needs {name} of {dtype} and shape {shape},"
                    f" got {found.dtype} and {tuple(found.shape)}"
                )

    def _split(self, labels: Tensor | None, sequences: Tensor, processes: int) -> None:
        indices = self._indices(labels, sequences)
        self.train_indices, self.val_indices = indices
        if self.holdout is None:
            check_fills_a_batch(len(self.train_indices), self.batch_size, processes)
        else:
            every = split_by_sequence(sequences, self.val_fraction)
            self.held_out = self.holdout.summary(indices, every, self.vocabulary)
            needed = self.batch_size * processes
            if len(self.train_indices) < needed:
                raise UserError(
                    f"data.holdout leaves {len(self.train_indices)} training frames, which do not"
                    f" fill one batch of {needed}; hold out less, or lower data.batch_size"
                )
        if 0 < len(self.val_indices) < processes:
            raise UserError(
                f"{len(self.val_indices)} validation frames are too few for {processes} processes;"
                " raise data.val_fraction, or set it to 0"
            )

    def _indices(self, labels: Tensor | None, sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Return training and validation frames, without those that show a held-out set."""
        train, val = split_by_sequence(sequences, self.val_fraction)
        if self.holdout is None or labels is None:
            return train, val
        keeps = self.holdout.keeps(labels, sequences, self.vocabulary)
        return train[keeps[train]], val[keeps[val]]

    def _moved(self, frames: Frames) -> Frames:
        """Return the frames on the trainer's device, or where they are if they do not fit there."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cpu" or self.device_resident is False:
            return frames
        if self.device_resident == "auto" and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if frames.images.nbytes > DEVICE_MEMORY_SHARE * free:
                return frames
        return frames.to(device)
