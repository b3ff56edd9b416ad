"""What a data source gives: labelled frames, and the condition lists to draw."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet


class Batch(NamedTuple):
    """One batch, on the device that computes.

    images: uint8, (B, 3, H, W), 0..255.
    labels: float32, (B, L), how many of each: multi-hot, but for 2 where a synthetic frame was
        asked to hold two of one label.
    indices: int64, (B,), each frame's position in its :class:`Frames`.
    positions: float32, (B, L, 2), where each object stands, as :func:`~.positions.find_positions`;
        None where nobody asked.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class Frames:
    """N labelled frames, in memory or memory-mapped.

    images: uint8, (N, 3, H, W), 0..255.
    labels: float32, (N, L), as in :class:`Batch`.
    sequences: int64, (N,), the sequence each frame belongs to. Frames of one sequence are near
        copies of each other, so a split must keep them together.
    names: N file names, for messages.
    """

    images: Tensor
    labels: Tensor
    sequences: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)


class Source(Protocol):
    """Where frames come from. Both sources have this shape."""

    def check(self) -> None:
        """Check all of the input that can be checked quickly. It writes nothing.

        Raises:
            UserError: something in the input is wrong.
        """

    def prepare(self) -> None:
        """Check the input and fill the cache. Called by one process.

        Raises:
            UserError: something in the input is wrong.
        """

    def frames(self) -> Frames:
        """The training frames, from the cache. Called by every process, after prepare()."""

    def sequences(self) -> Tensor:
        """The sequence of each frame, int64, (N,), before any is read.

        Raises:
            UserError: as :meth:`check`.
        """

    def conditions(self) -> dict[str, list[LabelSet]]:
        """The condition lists to draw and score, by name: ``test`` and ``new_test``."""

    def description(self) -> dict[str, Any]:
        """What weights trained on it say of it: ``source``, and what it takes to draw it again."""

    def identity(self) -> dict[str, Any]:
        """What tells its frames from others; two sources of one identity hold the same labels.

        Raises:
            UserError: as :meth:`prepare`.
        """


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 → float32 in [-1, 1], same shape."""
    return images.float() / 127.5 - 1
