"""Condition lists, which say what to draw: JSON files as the course's ``test.json``, or made."""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data import labels
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json
from iclevr_diffusion.utils.rng import keyed_generator

CROWDED = 64  # label sets of each size
_EXAMPLE = '[["red cube"], ["blue cube", "gray sphere"]]'


def read_conditions(path: str | Path) -> list[LabelSet]:
    """The label sets of a JSON file such as ``[["red cube"], ["blue cube", "gray sphere"]]``.

    Raises:
        UserError: the file is missing or no such list, is empty, or an entry (counted from 1) is
            empty, names an unknown label or one label twice.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of lists of labels, such as {_EXAMPLE}")
    if not entries:
        raise UserError(f"{path}: the list is empty; write for example {_EXAMPLE}")
    return [_label_set(entry, f"{path}: entry {n}") for n, entry in enumerate(entries, start=1)]


def _label_set(entry: Any, where: str) -> LabelSet:
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise UserError(f"{where}: expected a list of labels; the whole file looks like {_EXAMPLE}")
    try:
        return labels.check(entry)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def packaged_conditions(name: str) -> list[LabelSet]:
    """A list of this project's own.

    Args:
        name: ``test`` or ``new_test``, made after the course's; or ``validation``, to choose models
            by: none of its label sets is in a test list or unseen in the course's frames, and each
            label comes five times.
    """
    folder = resources.files("iclevr_diffusion.data") / "condition_lists"
    with resources.as_file(folder / f"{name}.json") as path:
        return read_conditions(path)


def all_conditions() -> list[LabelSet]:
    """The 24 singles, 276 pairs and 2024 triples."""
    return [label_set for size in (1, 2, 3) for label_set in labels.all_sets(size)]


def unseen_conditions(seen: Tensor) -> list[LabelSet]:
    """The triples that none of the frames shows, in label order; there may be none.

    Args:
        seen: the frames' labels, float (N, L), multi-hot.
    """
    shown = {labels.decode(row) for row in seen.unique(dim=0)}
    return [triple for triple in labels.all_sets(3) if triple not in shown]


def crowded_conditions() -> list[LabelSet]:
    """64 sets of four labels and 64 of five: more than any training frame shows."""
    generator = keyed_generator("crowded")
    return [
        labels.decode(torch.zeros(labels.NUM_LABELS).index_fill(0, order[:size], 1.0))
        for size in (4, 5)
        for order in torch.rand(CROWDED, labels.NUM_LABELS, generator=generator).argsort(1)
    ]
