"""Condition lists: the label sets to sample, from JSON files such as ``test.json`` or made here."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet, Vocabulary
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json
from iclevr_diffusion.utils.rng import keyed_generator, keyed_seed

TEST_LISTS = ("test", "new_test")  # of the course; models are chosen by CHOOSE_BY, not by these
CHOOSE_BY = "validation"
CROWDED = 64  # label sets of each size
LIST_SIZE = 64  # label sets of each size in the lists of held-out and seen compositions
ENUMERATED = 50_000  # sets of one size, at most, that are all made to choose some
NUMBERS = range(1, 9)  # of objects
OF_EACH_NUMBER = 16


def read_conditions(path: str | Path, vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """Read the label sets of a JSON file, ``[["red cube"], ["blue cube", "gray sphere"]]``.

    Raises:
        UserError: The file is missing, empty, or not such a list, or an entry (counted from 1) is
            empty, contains an unknown label, or contains a label twice.
    """
    path = Path(path)
    entries = read_json(path)
    example = json.dumps([vocabulary.names[:1], vocabulary.names[1:3]])
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of lists of labels, such as {example}")
    if not entries:
        raise UserError(f"{path}: the list is empty; write for example {example}")
    result = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}: entry {number}"
        if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
            raise UserError(
                f"{where}: expected a list of labels; the whole file looks like {example}"
            )
        try:
            result.append(vocabulary.check(entry))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return result


def packaged_conditions(name: str) -> list[LabelSet]:
    """Read one of the condition lists in this package, with i-CLEVR's labels.

    Args:
        name: ``test`` or ``new_test``, modelled on the course's; or ``validation``, by which models
            are chosen. None of its label sets is in a test list or unseen in the course's frames,
            and each label occurs five times.
    """
    folder = resources.files("iclevr_diffusion.data") / "condition_lists"
    with resources.as_file(folder / f"{name}.json") as path:
        return read_conditions(path)


def all_conditions(vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """All single labels, pairs and triples: 24, 276 and 2024 of i-CLEVR's labels."""
    sizes = range(1, min(3, len(vocabulary)) + 1)
    return [label_set for size in sizes for label_set in vocabulary.all_sets(size)]


def unseen_conditions(seen: Tensor, vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """Triples that occur in no frame, in label order; the list may be empty.

    Args:
        seen: Labels of the frames, float (N, L), multi-hot.
        vocabulary: Names of the L labels.
    """
    if len(vocabulary) < 3:
        return []
    shown = {vocabulary.decode(row) for row in seen.unique(dim=0)}
    return [triple for triple in vocabulary.all_sets(3) if triple not in shown]


def crowded_conditions(vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """64 sets of four labels and 64 of five, more than any training frame has."""
    generator = keyed_generator("crowded")
    count = len(vocabulary)
    return [
        vocabulary.decode(torch.zeros(count).index_fill(0, order[:size], 1.0))
        for size in (4, 5)
        for order in torch.rand(CROWDED, count, generator=generator).argsort(1)
    ]


def numbered_conditions(vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """16 sets of each number of labels from 1 to 8, or as many as there are."""
    sizes = [size for size in NUMBERS if size <= len(vocabulary)]
    return [
        label_set
        for size in sizes
        for label_set in some_conditions(size, vocabulary)[:OF_EACH_NUMBER]
    ]


def some_conditions(size: int, vocabulary: Vocabulary = ICLEVR_LABELS) -> list[LabelSet]:
    """At most 64 sets of ``size`` labels, chosen by a hash."""
    if math.comb(len(vocabulary), size) <= ENUMERATED:
        return shuffled(vocabulary.all_sets(size))[:LIST_SIZE]
    singles = vocabulary.all_sets(1)
    chosen = ({*shuffled(singles, number)[:size]} for number in range(2 * LIST_SIZE))
    sets = [tuple(name for (name,) in singles if (name,) in labels) for labels in chosen]
    return list(dict.fromkeys(sets))[:LIST_SIZE]


def seen_conditions(
    held_out: Sequence[LabelSet], shown: Tensor, vocabulary: Vocabulary = ICLEVR_LABELS
) -> list[LabelSet]:
    """Label sets of frames: of each size as many as are held out, or all if there are fewer.

    If no frame has as many labels as a held-out set, as with a held-out number of objects, sets of
    any size are chosen.

    Args:
        held_out: Label sets that no frame shows.
        shown: Labels of the training frames, (M, L).
        vocabulary: Names of the L labels.
    """
    known = shuffled({vocabulary.decode(row) for row in shown.unique(dim=0)} - {()})
    result: list[LabelSet] = []
    for size, wanted in Counter(map(len, held_out)).items():
        result += [names for names in known if len(names) == size][:wanted]
    return result or known[: len(held_out)]


def shuffled(label_sets: Iterable[LabelSet], seed: int = 0) -> list[LabelSet]:
    """Order label sets by a hash of the seed and their names, the same on every machine."""
    return sorted(label_sets, key=lambda names: keyed_seed("label set", seed, *sorted(names)))
