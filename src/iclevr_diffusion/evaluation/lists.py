"""The condition lists that an evaluation can ask for, by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iclevr_diffusion.data.conditions import (
    CHOOSE_BY,
    TEST_LISTS,
    all_conditions,
    crowded_conditions,
    numbered_conditions,
    packaged_conditions,
    read_conditions,
    unseen_conditions,
)
from iclevr_diffusion.data.holdout import HELD_OUT, SEEN, Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet, Vocabulary
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.evaluation.evaluation_report import frames_text
from iclevr_diffusion.utils.errors import UserError

OURS = "this project's own"
COMPUTED = {  # of any vocabulary
    "all": (all_conditions, "every single, pair and triple"),
    "crowded": (crowded_conditions, OURS),
    "numbers": (numbered_conditions, OURS),
}


def find_lists(
    names: Sequence[str],
    source: Source | None,
    trained_on: Mapping[str, Any],
    vocabulary: Vocabulary = ICLEVR_LABELS,
    split: Split | None = None,
) -> tuple[dict[str, list[LabelSet]], dict[str, str]]:
    """Return condition lists by name, and the origin of each.

    Args:
        names: ``test``, ``new_test``, ``validation``, ``all``, ``unseen``, ``crowded``,
            ``numbers``, ``held_out``, ``seen``, another list of the source, or JSON files.
        source: The frames to compare with; None for none.
        trained_on: The description of the training data; empty if unknown.
        vocabulary: The labels of the weights.
        split: The label sets that their training held out; None if it held out none.

    Raises:
        UserError: A list is unknown or empty, or two have one name.
    """
    if not names:
        raise UserError("lists is empty; write for example 'lists=[test,new_test]'")
    lists: dict[str, list[LabelSet]] = {}
    origins: dict[str, str] = {}
    # The unseen ones last: to find them, all frames must be loaded.
    for name in sorted(names, key=lambda name: name == "unseen"):
        short, label_sets, origin = find_list(name, source, trained_on, vocabulary, split)
        if not label_sets:
            raise UserError(f"lists: {name} is empty: there is nothing to sample")
        if short in lists:
            raise UserError(f"lists: {short} is named twice")
        lists[short], origins[short] = label_sets, origin
    return lists, origins


def find_list(
    name: str,
    source: Source | None,
    trained_on: Mapping[str, Any],
    vocabulary: Vocabulary = ICLEVR_LABELS,
    split: Split | None = None,
) -> tuple[str, list[LabelSet], str]:
    """Return one list: its name, its label sets and its origin."""
    if split is not None and name in (HELD_OUT, SEEN):
        sets = [tuple(label_set) for label_set in split.lists[name]]
        verb = "show" if name == SEEN else "do not show"
        return name, sets, f"sets that the training frames {verb}, {_words(split.settings)}"
    own = {} if source is None else lists_of(source)
    if name in own:
        kind = source.description()["source"] if source is not None else ""
        return name, own[name], "the course's" if kind == "iclevr" else f"the data's ({kind})"
    if name in (*TEST_LISTS, CHOOSE_BY) and vocabulary == ICLEVR_LABELS:
        return name, packaged_conditions(name), OURS
    if name in COMPUTED:
        make, origin = COMPUTED[name]
        return name, make(vocabulary), origin
    if name == "unseen":
        known = {} if source is None else source.description()
        if split is not None:
            raise UserError(
                "lists: unseen is not available for weights trained with data.holdout, which left"
                f" frames out; use {HELD_OUT}"
            )
        unseen = find_unseen(source, trained_on, vocabulary)
        return name, unseen, f"triples that {frames_text(known)} do not show"
    if name in (HELD_OUT, SEEN):
        raise UserError(
            f"lists: {name} needs weights trained with data/holdout=…, from a run or a weights"
            " folder; these have no holdout.json, and checkpoints never do"
        )
    if not Path(name).is_file():
        packaged = (*TEST_LISTS, CHOOSE_BY) if vocabulary == ICLEVR_LABELS else ()
        names = dict.fromkeys([*packaged, *own, *COMPUTED, "unseen", HELD_OUT, SEEN])
        raise UserError(f"lists: {name} is neither a file nor one of {', '.join(names)}")
    return Path(name).stem, read_conditions(name, vocabulary), f"the file {name}"


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def lists_of(source: Source) -> dict[str, list[LabelSet]]:
    """Return the lists that come with the data; synthetic frames have only the packaged ones."""
    return {} if source.description()["source"] == "synthetic" else source.conditions()


def find_unseen(
    source: Source | None, trained_on: Mapping[str, Any], vocabulary: Vocabulary
) -> list[LabelSet]:
    """Return the triples that the training frames do not show.

    Raises:
        UserError: The source is not the training data.
    """
    if source is None:
        raise UserError("lists: unseen needs the frames of the training: data.root=…")
    if trained_on and source.description() != trained_on:
        raise UserError(
            f"lists: unseen needs the frames of the training, {frames_text(trained_on)},"
            f" not {frames_text(source.description())}"
        )
    return unseen_conditions(source.load_frames().labels, vocabulary)
