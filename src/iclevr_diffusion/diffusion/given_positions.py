"""Positions of objects, as a user gives them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.data.negation import NOT
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.utils.errors import UserError


def parse_positions(
    pairs: Sequence[Sequence[float]], label_set: LabelSet, vocabulary: Vocabulary
) -> Tensor:
    """Positions (L, 2) from pairs in the order of the label set; 0 for all other labels.

    Raises:
        UserError: There is not one pair for each label, or a number is outside [-1, 1].
    """
    if len(pairs) != len(label_set):
        raise UserError(
            f"positions: {len(label_set)} labels need as many pairs [x, y], got {len(pairs)}"
        )
    result = torch.zeros(len(vocabulary), 2)
    for name, pair in zip(label_set, pairs, strict=True):
        if len(pair) != 2:
            raise UserError(f"positions: {name} needs two numbers, [x, y]; got {len(pair)}")
        if not all(-1 <= value <= 1 for value in pair):
            raise UserError(f"positions: {name} must be in [-1, 1], got {list(pair)}")
        result[vocabulary.index[name.removeprefix(NOT)]] = torch.tensor(list(pair))
    return result


def snapped(positions: Tensor, prior: Layout | None) -> Tensor:
    """Return the nearest positions, (…, 2), among those of the network's training frames.

    Args:
        positions: x to the right and y down, in [-1, 1].
        prior: The network's prior over positions; None if it takes none.

    Raises:
        UserError: The network takes no positions.
    """
    if prior is None:
        raise UserError("positions: these weights take no positions; leave them out")
    return prior.snap(positions)
