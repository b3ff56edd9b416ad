"""Batches, labeled frames, and the source of i-CLEVR's frames."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet


class Batch(NamedTuple):
    """One batch, on the device that trains.

    Attributes:
        images: uint8, (B, 3, H, W), 0..255.
        labels: float32, (B, L), object counts: multi-hot, but 2 if a synthetic frame holds two
            objects of one label.
        indices: int64, (B,), the frames' positions in their :class:`Frames`.
        positions: float32, (B, L, 2), the objects' positions, as
            :func:`~iclevr_diffusion.data.positions.find_positions`, or (B, L, 4) with headings;
            None unless requested.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class Frames:
    """N labeled frames, in memory or memory-mapped.

    Attributes:
        images: uint8, (N, 3, H, W), 0..255.
        labels: float32, (N, L), as in :class:`Batch`.
        sequences: int64, (N,), the sequence of each frame; by default each frame is one. Frames of
            one sequence are near copies of each other, so a split keeps them together.
        names: N file names, for messages.
        positions: float32, (N, L, 2), the objects' positions, 0 where a frame has no such label and
            NaN where unknown; None if they are not known in advance.
    """

    images: Tensor
    labels: Tensor
    sequences: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    names: list[str] = field(default_factory=list)
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.sequences):
            object.__setattr__(self, "sequences", torch.arange(len(self.images)))
        if not self.names:
            names = [f"frame {index}" for index in range(len(self.images))]
            object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "Frames":
        """Copy some of the frames."""
        return Frames(
            self.images[indices],
            self.labels[indices],
            self.sequences[indices],
            [self.names[index] for index in indices.tolist()],
            None if self.positions is None else self.positions[indices],
        )

    def to(self, device: torch.device | str) -> "Frames":
        """Return the frames with images and labels on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


class Source(Protocol):
    """A source of frames: the course's, synthetic ones, or those of a data module.

    Attributes:
        image_size: H = W, in pixels.
    """

    image_size: int

    def prepare_data(self) -> None:
        """Check the input and fill the cache. Several processes may call it at the same time.

        Raises:
            UserError: Something in the input is wrong.
        """

    def load_frames(self) -> Frames:
        """Return the frames from the cache. Called in every process, after prepare_data()."""

    def find_poses(self, frames: Frames, positions: Tensor) -> Tensor:
        """Return the poses of the objects, (N, L, 3), as :func:`~.poses.find_poses`."""

    def sequences(self) -> Tensor:
        """Return the sequence of each frame, int64, (N,), without loading the frames.

        This checks as much of the input as can be checked quickly, and writes nothing.

        Raises:
            UserError: Something in the input is wrong.
        """

    def frame_labels(self) -> Tensor:
        """Return the labels of all frames, (N, L), without loading the frames.

        Raises:
            UserError: As :meth:`sequences`.
        """

    def conditions(self) -> dict[str, list[LabelSet]]:
        """Return the condition lists to sample and score: ``test`` and ``new_test``."""

    def description(self) -> dict[str, Any]:
        """Return plain values that weights keep of their training data, ``source`` among them."""

    def identity(self) -> dict[str, Any]:
        """Return plain values that are equal for sources with the same frames and labels.

        Raises:
            UserError: As :meth:`prepare_data`.
        """


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
