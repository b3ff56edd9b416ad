"""Images with what was requested and what an evaluator sees in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.utils.pixels import to_uint8


@dataclass(frozen=True)
class ScoredImages:
    """The images of a condition list.

    Attributes:
        images: (N, 3, H, W), in [-1, 1].
        requested: The N label sets.
        shown: What the evaluator sees in each.
    """

    images: Tensor
    requested: Sequence[LabelSet]
    shown: Sequence[LabelSet]

    def rows(self) -> Iterator[tuple[str, npt.NDArray[Any], str, bool]]:
        """Yield for each image what was requested, its pixels, what is shown, and if that is right.

        The pixels are uint8, (H, W, 3). Right is an exact match.
        """
        pixels = to_uint8(self.images).permute(0, 2, 3, 1).numpy()
        for image, requested, shown in zip(pixels, self.requested, self.shown, strict=True):
            yield ", ".join(requested), image, ", ".join(shown), set(requested) == set(shown)
