"""Held-out compositions: no training frame shows one, and the same ones on every machine."""

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iclevr_diffusion.data.conditions import packaged_conditions, some_conditions
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.holdout import HeldOutCounts, HeldOutLabels, HeldOutSets
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.utils.errors import UserError

LABELS = [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4, 5], [6], [6, 0], [6, 0, 3]]
HOLDOUTS = [
    HeldOutSets(2, 0.2),
    HeldOutSets(3, 0.4, seed=7),
    HeldOutLabels(["red cube", "Grey spheres"]),
    HeldOutCounts([3]),
    HeldOutCounts([1, 2]),
]


class Labelled(DataModule):
    """Frames without content, of given labels."""

    image_size = 1

    def __init__(self, labels, sequences, holdout=None, vocabulary=ICLEVR_LABELS, **settings):
        self.vocabulary = vocabulary
        super().__init__(**{"batch_size": 1, "val_fraction": 0.1, **settings}, holdout=holdout)
        images = torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8)
        self.all_frames = Frames(images, labels, sequences)

    def load_frames(self):
        return self.all_frames

    def conditions(self):
        return {name: packaged_conditions(name) for name in ("test", "validation")}

    def description(self):
        return {"source": "labelled"}


@pytest.fixture(scope="module")
def synthetic():
    source = Synthetic(400)
    return source.frame_labels(), source.sequences()


def shown_names(labels):
    return [frozenset(ICLEVR_LABELS.names[i] for i in row.nonzero()) for row in labels]


def second_implementation(holdout):
    """Tell whether a set of names contains a held-out set, by a loop over its subsets."""
    if isinstance(holdout, HeldOutCounts):
        return lambda names: len(names) in holdout.objects
    if isinstance(holdout, HeldOutLabels):
        return lambda names: bool(set(names) & {"red cube", "gray sphere"})
    held_out = {frozenset(label_set) for label_set in holdout.sets(ICLEVR_LABELS)}
    return lambda names: any(
        frozenset(subset) in held_out for subset in itertools.combinations(names, holdout.size)
    )


def check_all_frames(labels, sequences, holdout):
    """Check that exactly the frames stay that the second implementation would keep."""
    data = Labelled(labels, sequences, holdout)
    data.setup("fit")
    is_held_out, names = second_implementation(holdout), shown_names(labels)
    left_out = {index for index in range(len(names)) if is_held_out(names[index])}
    if not isinstance(holdout, HeldOutCounts):
        removed = {int(sequences[index]) for index in left_out}
        left_out = {index for index in range(len(names)) if int(sequences[index]) in removed}
    kept = [*data.train_indices.tolist(), *data.val_indices.tolist()]
    assert left_out
    assert sorted(kept) == sorted(set(range(len(names))) - left_out)
    assert not any(is_held_out(names[index]) for index in kept)
    plain = Labelled(labels, sequences)
    plain.setup("fit")  # the same sequences validate, whatever is held out
    assert set(data.val_indices.tolist()) <= set(plain.val_indices.tolist())


@pytest.mark.parametrize("holdout", HOLDOUTS, ids=lambda holdout: str(holdout.description()))
def test_no_frame_that_stays_shows_a_held_out_set(synthetic, holdout):
    check_all_frames(*synthetic, holdout)


def test_no_real_frame_that_stays_shows_a_held_out_pair(shared_data):
    train = json.loads((shared_data / "labels" / "train.json").read_text())
    labels = ICLEVR_LABELS.encode_all(list(train.values()))
    numbers = [int(name.split("_")[2]) for name in train]
    check_all_frames(labels, torch.tensor(numbers), HeldOutSets(2, 0.3))


@given(fraction=st.floats(0.01, 0.99), smaller=st.floats(0.02, 1), seed=st.integers(0, 2**63 - 1))
def test_a_larger_fraction_holds_out_all_of_a_smaller_one(fraction, smaller, seed):
    more = HeldOutSets(2, fraction, seed).sets(ICLEVR_LABELS)
    assert len(set(more)) == len(more) == round(276 * fraction)
    if round(276 * fraction * smaller):
        fewer = HeldOutSets(2, fraction * smaller, seed).sets(ICLEVR_LABELS)
        assert more[: len(fewer)] == fewer


def test_the_choice_depends_on_names_and_seed_alone():
    first = [("purple cube", "gray sphere"), ("red cylinder", "brown cylinder")]
    assert HeldOutSets(2, 0.2).sets(ICLEVR_LABELS)[:2] == first  # in every version
    assert HeldOutSets(2, 0.2, seed=1).sets(ICLEVR_LABELS)[:2] != first
    backwards = Vocabulary(ICLEVR_LABELS.names[::-1])
    ours, theirs = (HeldOutSets(3, 0.1).sets(each) for each in (ICLEVR_LABELS, backwards))
    assert [set(names) for names in ours] == [set(names) for names in theirs]


@pytest.mark.parametrize("holdout", HOLDOUTS, ids=lambda holdout: str(holdout.description()))
def test_checkpoints_are_not_chosen_by_held_out_sets(synthetic, holdout):
    data = Labelled(*synthetic, holdout)
    data.setup("fit")
    lists, is_held_out = data.scored_conditions(), second_implementation(holdout)
    assert lists["test"] == packaged_conditions("test")
    known = packaged_conditions("validation")
    assert lists["validation"] == [names for names in known if not is_held_out(names)]
    assert all(map(is_held_out, lists["held_out"]))
    shown = set(shown_names(data.frames.labels[data.train_indices]))
    assert {frozenset(names) for names in lists["seen"]} <= shown
    assert max(Counter(map(len, lists["held_out"])).values()) <= 64
    if not isinstance(holdout, HeldOutCounts):  # else there are no seen sets of that size
        wanted, found = (Counter(map(len, lists[name])) for name in ("held_out", "seen"))
        assert found.keys() == wanted.keys()
        assert all(found[size] <= wanted[size] for size in found)


def test_what_weights_keep_is_enough_to_hold_out_the_same_sets(synthetic):
    data = Labelled(*synthetic, HeldOutSets(2, 0.25, seed=3))
    split = data.holdout_split()
    settings = json.loads(json.dumps(split.settings))
    assert settings == {"kind": "pairs", "fraction": 0.25, "seed": 3}
    again = HeldOutSets(2, settings["fraction"], settings["seed"])
    assert split.lists == Labelled(*synthetic, again).holdout_split().lists
    held_out = [list(names) for names in again.sets(ICLEVR_LABELS)]
    assert split.lists["held_out"] == held_out[:64]


def test_a_number_of_objects_is_held_out_frame_by_frame():
    labels = torch.zeros(9, 24)
    for row, shown in enumerate(LABELS):
        labels[row, shown] = 1
    data = Labelled(labels, torch.arange(9) // 3, HeldOutCounts([3]), val_fraction=0.0)
    data.check(1)
    assert data.train_indices.tolist() == [0, 1, 3, 4, 6, 7]
    assert data.held_out == (
        "held out: frames of 3 objects; 6 of 9 training frames and 0 of 0 validation frames are"
        " kept"
    )
    assert {len(names) for names in data.scored_conditions()["held_out"]} == {3}
    assert {len(names) for names in data.scored_conditions()["seen"]} == {1, 2}


def test_the_position_prior_is_of_the_frames_that_stay():
    fruit = Vocabulary(["apple", "pear", "plum"])
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).repeat(4, 1)
    data = Labelled(labels, torch.arange(12), HeldOutLabels(["Plums"]), fruit, val_fraction=0.0)
    data.with_positions = True
    x = torch.tensor([0.25, 0.25, -0.75]).repeat(4)
    positions = torch.stack([x, torch.zeros(12)], 1)[:, None] * labels[..., None]
    data.find_positions = lambda frames: positions
    data.setup("fit")
    assert data.position_prior().first.tolist() == [0.25, 0.0]


def test_of_many_possible_sets_some_are_chosen():
    many = Vocabulary([f"label {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(80)])
    sets = some_conditions(5, many)
    assert sets == some_conditions(5, many)
    assert len(set(sets)) == 64
    assert {len(set(names)) for names in sets} == {5}


def test_what_leaves_nothing_is_refused(synthetic):
    with pytest.raises(UserError, match="leaves 0 training frames"):
        Labelled(*synthetic, HeldOutSets(2, 0.99)).check(1)
    with pytest.raises(UserError, match="leaves none of the 52 conditions"):
        Labelled(*synthetic, HeldOutCounts([1, 2, 3])).scored_conditions()
