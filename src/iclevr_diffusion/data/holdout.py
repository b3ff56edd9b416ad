"""Held-out compositions: label sets that training never shows, to measure what a network composes.

CLEVR-CoGenT (Johnson et al. 2017, arXiv 1612.06890) holds out combinations of color and shape;
Okawa et al. 2023 (arXiv 2310.09336) train diffusion models on some combinations of concepts and
sample the others. A frame shows a set if its labels contain it. The choice is a function of a seed
and the labels' names alone, by a hash: it is the same on every machine and in every version, and
the sets of a small fraction are among those of a larger one with the same seed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data.conditions import (
    CHOOSE_BY,
    LIST_SIZE,
    seen_conditions,
    shuffled,
    some_conditions,
)
from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.utils.errors import UserError

HELD_OUT, SEEN = "held_out", "seen"  # condition lists
LARGEST = 3  # labels in a set of a list, except where a number of objects is held out
SIZES = {2: "pairs", 3: "triples"}


@dataclass(frozen=True)
class Split:
    """A split as weights keep it, in ``holdout.json``.

    Attributes:
        settings: plain values of which the :class:`Holdout` can be built again.
        lists: condition lists ``held_out`` and ``seen``, of sets of the same sizes: the former are
            not shown by any training frame, the latter are.
    """

    settings: dict[str, Any]
    lists: dict[str, list[list[str]]]


class Holdout(ABC):
    """The label sets that training does not show; a setting of any data module.

    Subclass it to hold out others.

    Attributes:
        whole_sequences: whether all frames of a sequence are left out if one of them shows a
            held-out set. Otherwise the earlier frames of such a sequence, which show the same
            objects before the last was added, would stay: frames with many objects would become
            rare relative to those with few, and held-out sets would be confounded with numbers of
            objects.
    """

    whole_sequences = True

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return plain values that identify the choice; they must match on resume."""

    @abstractmethod
    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Tell which frames show a held-out set, bool (N,), by their labels (N, L), counts.

        Raises:
            UserError: a setting does not fit the vocabulary.
        """

    @abstractmethod
    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        """Return held-out sets to sample, at most 64 of each size.

        Raises:
            UserError: as :meth:`shows`.
        """

    @abstractmethod
    def words(self, vocabulary: Vocabulary) -> str:
        """Say what is held out, such as ``55 of 276 pairs``."""

    def keeps(self, labels: Tensor, sequences: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Tell which frames stay in training and validation, bool (N,).

        Args:
            labels: (N, L), object counts.
            sequences: int64, (N,), the sequence of each frame.
            vocabulary: names of the L labels.

        Raises:
            UserError: as :meth:`shows`.
        """
        left_out = self.shows(labels, vocabulary)
        if self.whole_sequences:
            left_out = torch.isin(sequences, sequences[left_out])
        return ~left_out

    def summary(
        self, kept: Sequence[Tensor], every: Sequence[Tensor], vocabulary: Vocabulary
    ) -> str:
        """Say in a line how many training and validation frames are kept, of how many."""
        train, val = (f"{len(a)} of {len(b)}" for a, b in zip(kept, every, strict=True))
        return (
            f"held out: {self.words(vocabulary)}; {train} training frames and {val} validation"
            " frames are kept"
        )

    def scored_conditions(
        self, lists: Mapping[str, list[LabelSet]], split: Split, vocabulary: Vocabulary
    ) -> dict[str, list[LabelSet]]:
        """Return the condition lists that a training scores.

        The list by which the best checkpoint is chosen loses the conditions that contain a held-out
        set; ``held_out`` and ``seen`` are added; the others stay as they are.

        Raises:
            UserError: nothing is left to choose by.
        """
        more = {name: [tuple(names) for names in sets] for name, sets in split.lists.items()}
        if CHOOSE_BY not in lists:
            return {**lists, **more}
        known = lists[CHOOSE_BY]
        contain = self.shows(vocabulary.encode_all(known), vocabulary).tolist()
        allowed = [names for names, held_out in zip(known, contain, strict=True) if not held_out]
        if not allowed:
            raise UserError(
                f"data.holdout leaves none of the {len(known)} conditions of the list {CHOOSE_BY},"
                " by which checkpoints are chosen; hold out less"
            )
        return {**lists, CHOOSE_BY: allowed, **more}

    def split(self, shown: Tensor, vocabulary: Vocabulary) -> Split:
        """Return what weights keep of a training on frames with the labels ``shown``, (M, L)."""
        held_out = self.conditions(vocabulary)
        lists = {HELD_OUT: held_out, SEEN: seen_conditions(held_out, shown, vocabulary)}
        plain = {name: [list(names) for names in label_sets] for name, label_sets in lists.items()}
        return Split(self.description(), plain)


class HeldOutSets(Holdout):
    """A fraction of all pairs, or of all sets of another size.

    Args:
        size: labels per set: 2 for pairs, 3 for triples.
        fraction: share of the sets of that size, above 0 and below 1.
        seed: of the choice.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, size: int, fraction: float, seed: int = 0) -> None:
        if size not in SIZES:
            raise ValueError(f"size must be 2 or 3, got {size}")
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be above 0 and below 1, got {fraction:g}")
        self.size, self.fraction, self.seed = size, fraction, seed

    def description(self) -> dict[str, Any]:
        return {"kind": SIZES[self.size], "fraction": self.fraction, "seed": self.seed}

    def sets(self, vocabulary: Vocabulary) -> list[LabelSet]:
        """Return all held-out sets.

        Raises:
            UserError: there is none.
        """
        known = math.comb(len(vocabulary), self.size)
        count = round(self.fraction * known)
        if count == 0:
            raise UserError(
                f"data.holdout.fraction={self.fraction:g} of {known} {SIZES[self.size]} is none of"
                " them; raise it"
            )
        return shuffled(vocabulary.all_sets(self.size), self.seed)[:count]

    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        return _contain_any(labels, self.sets(vocabulary), vocabulary)

    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        return self.sets(vocabulary)[:LIST_SIZE]

    def words(self, vocabulary: Vocabulary) -> str:
        known = math.comb(len(vocabulary), self.size)
        return f"{len(self.sets(vocabulary))} of {known} {SIZES[self.size]}, seed {self.seed}"


class HeldOutLabels(Holdout):
    """Whole labels, such as combinations of a color and a shape, as in CLEVR-CoGenT.

    Args:
        labels: their names.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, labels: list[str]) -> None:
        if not labels:
            raise ValueError("labels is empty; write for example [red cube, blue sphere]")
        self.labels = labels

    def description(self) -> dict[str, Any]:
        return {"kind": "labels", "labels": list(self.labels)}

    def names(self, vocabulary: Vocabulary) -> LabelSet:
        """Return the labels in their canonical spelling.

        Raises:
            UserError: a label is unknown or named twice.
        """
        try:
            return vocabulary.check(self.labels)
        except UserError as error:
            raise UserError(f"data.holdout.labels: {error}") from error

    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        return _contain_any(labels, [(name,) for name in self.names(vocabulary)], vocabulary)

    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        held_out = set(self.names(vocabulary))
        result: list[LabelSet] = []
        for size in range(1, min(LARGEST, len(vocabulary)) + 1):
            sets = [names for names in vocabulary.all_sets(size) if held_out & set(names)]
            result += shuffled(sets)[:LIST_SIZE]
        return result

    def words(self, vocabulary: Vocabulary) -> str:
        return ", ".join(self.names(vocabulary))


class HeldOutCounts(Holdout):
    """Numbers of objects: train on frames with one and two, and sample three.

    Frames are left out one by one: in i-CLEVR each sequence ends with three objects.

    Args:
        objects: the numbers that training does not show.

    Raises:
        ValueError: there is none, or one is below 1 or named twice.
    """

    whole_sequences = False

    def __init__(self, objects: list[int]) -> None:
        if not objects or min(objects) < 1 or len(set(objects)) < len(objects):
            raise ValueError(f"objects must be different numbers from 1 up, got {objects}")
        self.objects = objects

    def description(self) -> dict[str, Any]:
        return {"kind": "count", "objects": sorted(self.objects)}

    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        return torch.isin(labels.sum(1).long(), torch.tensor(self.objects, device=labels.device))

    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        if max(self.objects) > len(vocabulary):
            raise UserError(
                f"data.holdout.objects={max(self.objects)}: there are {len(vocabulary)} labels"
            )
        return [
            names for size in sorted(self.objects) for names in some_conditions(size, vocabulary)
        ]

    def words(self, vocabulary: Vocabulary) -> str:
        return f"frames of {', '.join(map(str, sorted(self.objects)))} objects"


def _contain_any(labels: Tensor, sets: Sequence[LabelSet], vocabulary: Vocabulary) -> Tensor:
    """Tell which rows of labels (N, L) contain one of the sets, bool (N,)."""
    wanted = torch.zeros(len(sets), len(vocabulary))
    for row, names in enumerate(sets):
        wanted[row, [vocabulary.index[name] for name in names]] = 1
    different, inverse = (labels.cpu() > 0).float().unique(dim=0, return_inverse=True)
    contained: Tensor = (different @ wanted.T == wanted.sum(1)).any(1)
    return contained[inverse]
