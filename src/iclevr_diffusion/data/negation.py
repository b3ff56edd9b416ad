"""Label sets with negated labels: ``("red cube", "not blue sphere")``."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary

NOT = "not "
NEGATION = re.compile(r"^\s*not\s+", re.IGNORECASE)


def check_signed(names: str | Sequence[str], vocabulary: Vocabulary) -> LabelSet:
    """Return the canonical label set of a string or of names, each optionally after ``not``.

    Raises:
        UserError: As :meth:`.labels.Vocabulary.check`; a label and its negation count as given
            twice.
    """
    parts = vocabulary.split(names)
    negated = [NEGATION.match(part) is not None for part in parts]
    bare = [NEGATION.sub("", part, count=1) for part in parts]
    pairs = zip(vocabulary.check(bare), negated, strict=True)
    return tuple(NOT + name if minus else name for name, minus in pairs)


def encode_signed(names: str | Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """Encode a label set as float32, (L,): 1 for a label, -1 for a negated one, 0 for others.

    Raises:
        UserError: As :func:`check_signed`.
    """
    vector = torch.zeros(len(vocabulary))
    for name in check_signed(names, vocabulary):
        vector[vocabulary.index[name.removeprefix(NOT)]] = -1.0 if name.startswith(NOT) else 1.0
    return vector


def encode_all_signed(label_sets: Sequence[Sequence[str]], vocabulary: Vocabulary) -> Tensor:
    """Encode N label sets as :func:`encode_signed` does, (N, L)."""
    return torch.stack([encode_signed(names, vocabulary) for names in label_sets])
