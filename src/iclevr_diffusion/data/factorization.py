"""Vocabularies whose labels are all combinations of a color and a shape."""

from dataclasses import dataclass

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import Vocabulary


@dataclass(frozen=True)
class Factorization:
    """The color and the shape of each of C · S labels.

    Attributes:
        colors: The C first words, in order of first appearance.
        shapes: The S last words, likewise.
        color_of: int64, (L,), the color of each label.
        shape_of: int64, (L,), the shape of each label.
    """

    colors: tuple[str, ...]
    shapes: tuple[str, ...]
    color_of: Tensor
    shape_of: Tensor

    def count_colors(self, shown: Tensor) -> Tensor:
        """Count the labels of each color in (B, L): (B, C), in the dtype of ``shown``."""
        return _count(shown, self.color_of, len(self.colors))

    def count_shapes(self, shown: Tensor) -> Tensor:
        """Count the labels of each shape in (B, L): (B, S), in the dtype of ``shown``."""
        return _count(shown, self.shape_of, len(self.shapes))


def factorize(vocabulary: Vocabulary) -> Factorization | None:
    """Split labels of two words, such as ``red cube``, into colors and shapes.

    Returns:
        None if a label does not have two words, if a combination is not a label, or if there is
        only one color or one shape.
    """
    words = [tuple(name.split()) for name in vocabulary.names]
    if any(len(pair) != 2 for pair in words):
        return None
    colors, shapes = (tuple(dict.fromkeys(part)) for part in zip(*words, strict=True))
    is_whole = len(set(words)) == len(words) == len(colors) * len(shapes)
    if not is_whole or min(len(colors), len(shapes)) < 2:
        return None
    return Factorization(
        colors,
        shapes,
        torch.tensor([colors.index(color) for color, _ in words]),
        torch.tensor([shapes.index(shape) for _, shape in words]),
    )


def _count(shown: Tensor, part_of: Tensor, parts: int) -> Tensor:
    result = shown.new_zeros(len(shown), parts)
    return result.index_add(1, part_of.to(shown.device), shown)
