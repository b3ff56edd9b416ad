"""The output of an evaluator, and the names of the objects in it."""

from typing import NamedTuple

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, LabelSet, Vocabulary

THRESHOLD = 0.5  # an image shows what has a score above it


class ClassifierOutput(NamedTuple):
    """The output of an evaluator for B images.

    Attributes:
        scores: float32, (B, L), in [0, 1]; above one half, the image shows an object of that label.
        counts: int64, (B,), the number of objects, where two of one label are two; None if the
            evaluator does not count.
        features: float32, (B, F), of the last hidden layer.
        unclear: float32, (B, 8), in [0, 1]; above one half, the image shows an object of that color
            (in the order of ``labels.COLORS``) that has none of the three shapes. Such an object
            has no label above one half. None if the evaluator always names a shape.
    """

    scores: Tensor
    counts: Tensor | None
    features: Tensor
    unclear: Tensor | None = None

    @property
    def all_scores(self) -> Tensor:
        """The scores of the labels, (B, L), and of unclear colors, (B, L + 8), if there are any."""
        return self.scores if self.unclear is None else torch.cat([self.scores, self.unclear], 1)


def shown_names(scores: Tensor, vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """Name what each image shows, by its :attr:`ClassifierOutput.all_scores`.

    That is its labels, and ``unclear red`` for a red object of no shape.
    """
    names = [*vocabulary.names, *(f"unclear {color}" for color in COLORS)]
    return [
        tuple(names[index] for index in row.nonzero().flatten().tolist())
        for row in (scores > THRESHOLD).cpu()
    ]


def is_exact(requested: LabelSet, shown: LabelSet) -> bool:
    """Return whether an image shows exactly its labels, by their names, in any order."""
    return set(requested) == set(shown)
