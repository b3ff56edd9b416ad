import json
from pathlib import Path

import pytest

from iclevr_diffusion.data.conditions import (
    CROWDED,
    all_conditions,
    crowded_conditions,
    packaged_conditions,
    read_conditions,
    unseen_conditions,
)
from iclevr_diffusion.data.labels import ICLEVR_LABELS, NAMES, Vocabulary
from iclevr_diffusion.utils.errors import UserError


def test_label_sets_come_in_the_file_s_order_and_spelled_canonically(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text('[["red cube"], [" Grey  SPHERES", "blue cube"]]')
    assert read_conditions(path) == [("red cube",), ("gray sphere", "blue cube")]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_bytes(b'\xef\xbb\xbf[["red cube"]]')
    assert read_conditions(str(path)) == [("red cube",)]


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b" \n ", "the file is empty"),
        (b'[["red cube"],\n ["blue cube",]]', "(line 2, column"),
        (b'[["red cube"]] x', "Extra data (line 1, column 16)"),
        (b"null", "expected a list of lists of labels"),
        (b'[["red\\ncube\\nx"]]', "entry 1: unknown label"),
        (b'{"a": 1, "a": 2}', "'a' is listed twice"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, phrase: str) -> None:
    """More of them are in tests/bad_input_cases.py."""
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_conditions(path)
    assert str(error.value).startswith(f"{path}: ")
    assert phrase in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: no such file"):
        read_conditions(tmp_path / "nowhere.json")


def test_a_folder_instead_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_conditions(tmp_path)


@pytest.mark.parametrize("name", ["test", "new_test"])
def test_the_course_s_lists_are_read(shared_data: Path, name: str) -> None:
    conditions = read_conditions(shared_data / "labels" / f"{name}.json")
    assert len(conditions) == 32
    assert {len(labels) for labels in conditions} <= {1, 2, 3}


def as_sets(conditions) -> set[frozenset[str]]:
    return {frozenset(labels) for labels in conditions}


def test_validation_asks_for_each_label_five_times() -> None:
    conditions = packaged_conditions("validation")
    assert len(conditions) == len(as_sets(conditions)) == 52
    assert ICLEVR_LABELS.encode_all(conditions).sum(0).tolist() == [5] * len(NAMES)
    assert {len(labels) for labels in conditions} == {1, 2, 3}


@pytest.mark.parametrize("name", ["test", "new_test"])
def test_validation_has_no_label_set_of_a_packaged_test_list(name: str) -> None:
    validation = as_sets(packaged_conditions("validation"))
    assert not validation & as_sets(packaged_conditions(name))


@pytest.mark.parametrize("name", ["test", "new_test"])
def test_validation_has_no_label_set_of_the_course_s_test_lists(
    shared_data: Path, name: str
) -> None:
    course = as_sets(read_conditions(shared_data / "labels" / f"{name}.json"))
    assert not as_sets(packaged_conditions("validation")) & course


def test_all_conditions_are_all_sets_of_up_to_three_labels() -> None:
    conditions = all_conditions()
    assert len(conditions) == len(as_sets(conditions)) == 24 + 276 + 2024
    sizes = [len(labels) for labels in conditions]
    assert sizes == [1] * 24 + [2] * 276 + [3] * 2024
    assert all(len(set(labels)) == len(labels) for labels in conditions)


def test_unseen_conditions_are_the_triples_that_no_frame_shows() -> None:
    seen = [
        ("red cube", "gray cube", "yellow cylinder"),
        ("yellow cylinder", "gray cube", "red cube"),  # the same again
        ("blue cube", "green cube", "brown cube"),
        ("gray cube", "red cube"),
        ("gray cube", "red cube", "blue cube", "green cube"),  # shows no triple alone
    ]
    unseen = unseen_conditions(ICLEVR_LABELS.encode_all(seen))
    assert as_sets(unseen) == as_sets(all_conditions()[300:]) - as_sets(seen)
    assert len(unseen) == 2022
    order = [[ICLEVR_LABELS.index[name] for name in labels] for labels in unseen]
    assert order == sorted(order)


def test_no_triple_is_unseen_where_all_were_shown() -> None:
    assert unseen_conditions(ICLEVR_LABELS.encode_all(all_conditions())) == []


def test_crowded_conditions_are_64_of_four_and_64_of_five() -> None:
    conditions = crowded_conditions()
    assert [len(labels) for labels in conditions] == [4] * CROWDED + [5] * CROWDED
    assert CROWDED == 64
    assert len(as_sets(conditions)) == 128
    assert all(len(set(labels)) == len(labels) for labels in conditions)
    assert ICLEVR_LABELS.encode_all(conditions).sum(0).min() > 0
    assert crowded_conditions() == conditions


def test_validation_has_no_triple_that_is_unseen_in_the_courses_frames(shared_data):
    train = json.loads((shared_data / "labels" / "train.json").read_text())
    seen = {frozenset(label_set) for label_set in train.values()}
    triples = [names for names in packaged_conditions("validation") if len(names) == 3]
    assert all(frozenset(names) in seen for names in triples)


def test_lists_of_another_vocabulary(tmp_path):
    fruit = Vocabulary(["apple", "pear"])
    path = tmp_path / "list.json"
    path.write_text('[["pears"], ["Apple", "pear"]]')
    assert read_conditions(path, fruit) == [("pear",), ("apple", "pear")]
    path.write_text("[]")
    with pytest.raises(UserError, match=r"example \[\[\"apple\"\], \[\"pear\"\]\]"):
        read_conditions(path, fruit)
    assert all_conditions(fruit) == [("apple",), ("pear",), ("apple", "pear")]
    assert unseen_conditions(fruit.encode_all([["pear"]]), fruit) == []
