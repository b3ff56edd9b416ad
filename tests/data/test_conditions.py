from pathlib import Path

import pytest

from iclevr_diffusion.data.conditions import read_conditions
from iclevr_diffusion.errors import UserError


def test_label_sets_come_in_the_file_s_order_and_spelled_canonically(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_text('[["red cube"], [" Grey  SPHERES", "blue cube"]]')
    assert read_conditions(path) == [("red cube",), ("gray sphere", "blue cube")]


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    path.write_bytes(b'\xef\xbb\xbf[["red cube"]]')
    assert read_conditions(str(path)) == [("red cube",)]


BAD = {
    "empty file": (b"", "the file is empty"),
    "only blanks": (b" \n ", "the file is empty"),
    "not UTF-8": (b'[["red \xff cube"]]', "not UTF-8 text (byte 7)"),
    "cut short": (b'[["red cube"],\n ["blue', "not valid JSON: Unterminated string"),
    "trailing comma": (b'[["red cube"],\n ["blue cube",]]', "(line 2, column"),
    "text after": (b'[["red cube"]] x', "Extra data (line 1, column 16)"),
    "too deep": (b"[" * 200_000, "not valid JSON"),
    "an object": (b'{"a": ["red cube"]}', "expected a list of lists of labels"),
    "a string": (b'"red cube"', "expected a list of lists of labels"),
    "null": (b"null", "expected a list of lists of labels"),
    "no entry": (b"[]", "the list is empty"),
    "flat list": (b'["red cube", "blue cube"]', "entry 1: expected a list of labels"),
    "number as label": (b'[["red cube"], ["blue cube", 3]]', "entry 2: expected a list of labels"),
    "empty entry": (b'[["red cube"], []]', "entry 2: no label given"),
    "unknown label": (
        b'[["red cube"], ["blue cube"], ["red cub"]]',
        "entry 3: unknown label 'red cub'; the closest are red cube",
    ),
    "label with a line break": (b'[["red\\ncube\\nx"]]', "entry 1: unknown label"),
    "doubled label": (b'[["red cube", "Red Cubes"]]', "entry 1: label given twice: red cube"),
    "doubled key": (b'{"a": 1, "a": 2}', "'a' is listed twice"),
}


@pytest.mark.parametrize(("content", "phrase"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, phrase: str) -> None:
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
