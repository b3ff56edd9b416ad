"""Images with what was requested and what an evaluator sees in them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet


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
