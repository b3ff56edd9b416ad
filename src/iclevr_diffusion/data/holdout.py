"""Held-out compositions: label sets that training never shows, to test whether a network composes.

CLEVR-CoGenT (Johnson et al. 2017, arXiv 1612.06890) holds out combinations of color and shape;
Okawa et al. 2023 (arXiv 2310.09336) train diffusion models on some combinations of concepts and
sample the others. A frame shows a set if its labels contain it. The choice depends only on a seed
and the label names, through a hash: it is the same on every machine and in every version. For a
given seed, the sets of a larger fraction include those of a smaller one.
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
LARGEST = 3  # most labels per set in a list, unless numbers of objects are held out
SIZES = {2: "pairs", 3: "triples"}


@dataclass(frozen=True)
class Split:
    """A split as stored with the weights, in ``holdout.json``.

    Attributes:
        settings: Plain values from which the :class:`Holdout` can be rebuilt.
        lists: The condition lists ``held_out``, shown by no training frame, and ``seen``, shown by
            some; their sets have the same sizes.
    """

    settings: dict[str, Any]
    lists: dict[str, list[list[str]]]


class Holdout(ABC):
    """Label sets left out of training; a setting of any data module.

    Subclass it to write your own rule.

    Attributes:
        whole_sequences: Whether to leave out all frames of a sequence if one of them shows a
            held-out set. Otherwise the earlier frames of that sequence, with fewer objects, would
            stay: frames with many objects would become rare, and held-out sets would be confounded
            with numbers of objects.
    """

    whole_sequences = True

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Return plain values that identify the held-out sets; they must match on resume."""

    @abstractmethod
    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Mark the frames that show a held-out set, bool (N,), given object counts (N, L).

        Raises:
            UserError: A setting does not fit the vocabulary.
        """

    @abstractmethod
    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        """Return the held-out sets to sample, at most 64 of each size.

        Raises:
            UserError: As :meth:`shows`.
        """

    @abstractmethod
    def words(self, vocabulary: Vocabulary) -> str:
        """Describe what is held out, such as ``55 of 276 pairs``."""

    def keeps(self, labels: Tensor, sequences: Tensor, vocabulary: Vocabulary) -> Tensor:
        """Mark the frames that stay in training and validation, bool (N,).

        Args:
            labels: (N, L), object counts.
            sequences: int64, (N,), the sequence of each frame.
            vocabulary: Names of the L labels.

        Raises:
            UserError: As :meth:`shows`.
        """
        left_out = self.shows(labels, vocabulary)
        if self.whole_sequences:
            left_out = torch.isin(sequences, sequences[left_out])
        return ~left_out

    def summary(
        self, kept: Sequence[Tensor], every: Sequence[Tensor], vocabulary: Vocabulary
    ) -> str:
        """Format, in one line, how many training and validation frames are kept."""
        train, val = (f"{len(a)} of {len(b)}" for a, b in zip(kept, every, strict=True))
        return (
            f"held out: {self.words(vocabulary)}; {train} training frames and {val} validation"
            " frames are kept"
        )

    def scored_conditions(
        self, lists: Mapping[str, list[LabelSet]], split: Split, vocabulary: Vocabulary
    ) -> dict[str, list[LabelSet]]:
        """Return the condition lists to score during training.

        Conditions that contain a held-out set are removed from the list that chooses the best
        checkpoint. ``held_out`` and ``seen`` are added; other lists are unchanged.

        Raises:
            UserError: That list would be empty.
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
        """Return the split to store with weights trained on labels ``shown``, (M, L)."""
        held_out = self.conditions(vocabulary)
        lists = {HELD_OUT: held_out, SEEN: seen_conditions(held_out, shown, vocabulary)}
        plain = {name: [list(names) for names in label_sets] for name, label_sets in lists.items()}
        return Split(self.description(), plain)


class HeldOutSets(Holdout):
    """A fraction of all pairs, or of all sets of another size.

    Args:
        size: Labels per set: 2 for pairs, 3 for triples.
        fraction: Share of all sets of that size to hold out, above 0 and below 1.
        seed: Seed of the choice.

    Raises:
        ValueError: An argument is out of range.
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
            UserError: There are none.
        """
        known = math.comb(len(vocabulary), self.size)
        count = round(self.fraction * known)
        if count == 0:
            raise UserError(
                f"data.holdout.fraction={self.fraction:g} of {known} {SIZES[self.size]} rounds to"
                " none; raise it"
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

    Raises:
        ValueError: The list is empty.
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
            UserError: A label is unknown or named twice.
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

    Only the frames themselves are left out, since every i-CLEVR sequence ends with three objects.

    Args:
        objects: The numbers of objects to leave out of training.

    Raises:
        ValueError: The list is empty, or a number is below 1 or given twice.
    """

    whole_sequences = False

    def __init__(self, objects: list[int]) -> None:
        if not objects or min(objects) < 1 or len(set(objects)) < len(objects):
            raise ValueError(f"objects must be distinct numbers of 1 or more, got {objects}")
        self.objects = objects

    def description(self) -> dict[str, Any]:
        return {"kind": "count", "objects": sorted(self.objects)}

    def shows(self, labels: Tensor, vocabulary: Vocabulary) -> Tensor:
        return torch.isin(labels.sum(1).long(), torch.tensor(self.objects, device=labels.device))

    def conditions(self, vocabulary: Vocabulary) -> list[LabelSet]:
        if max(self.objects) > len(vocabulary):
            raise UserError(
                f"data.holdout.objects={max(self.objects)}: there are only {len(vocabulary)} labels"
            )
        return [
            names for size in sorted(self.objects) for names in some_conditions(size, vocabulary)
        ]

    def words(self, vocabulary: Vocabulary) -> str:
        return f"frames of {', '.join(map(str, sorted(self.objects)))} objects"


def _contain_any(labels: Tensor, sets: Sequence[LabelSet], vocabulary: Vocabulary) -> Tensor:
    """Mark the rows of labels (N, L) that contain one of the sets, bool (N,)."""
    wanted = torch.zeros(len(sets), len(vocabulary))
    for row, names in enumerate(sets):
        wanted[row, [vocabulary.index[name] for name in names]] = 1
    different, inverse = (labels.cpu() > 0).float().unique(dim=0, return_inverse=True)
    contained: Tensor = (different @ wanted.T == wanted.sum(1)).any(1)
    return contained[inverse]
