import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.typed_json import from_json, read_dataclass, write_dataclass


@dataclass(frozen=True)
class Inner:
    rate: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int
    parts: dict[str, Inner]
    values: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    flag: bool = False
    first: Inner | None = None


GOOD = {"name": "a", "steps": 3, "parts": {"x": {"rate": 1, "interval": [0.5, 2]}}}


def test_what_was_written_is_read(tmp_path):
    outer = Outer("a", 3, {"x": Inner(0.5, (0.0, 1.0))}, [1.0], {"k": [None]}, True, Inner(2.0))
    write_dataclass(tmp_path / "a.json", outer)
    assert read_dataclass(Outer, tmp_path / "a.json") == outer


def test_whole_numbers_become_floats_and_unknown_keys_are_ignored():
    outer = from_json(Outer, GOOD | {"of a later version": 1}, "a.json")
    assert outer == Outer("a", 3, {"x": Inner(1.0, (0.5, 2.0))})
    assert type(outer.parts["x"].rate) is float


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (None, "a.json: the content must be an object, got None"),
        ({"name": 5}, "a.json: name must be a string, got 5"),
        ({"steps": True}, "a.json: steps must be a whole number, got True"),
        ({"steps": 2.5}, "a.json: steps must be a whole number, got 2.5"),
        ({"steps": 10**30}, "a.json: steps must be a whole number, got 1000000000"),
        ({"parts": []}, "a.json: parts must be an object, got list"),
        ({"parts": {"x": {}}}, "a.json: parts.x.rate is missing"),
        ({"parts": {"x": {"rate": "1"}}}, "a.json: parts.x.rate must be a finite number, got '1'"),
        ({"values": [1, math.nan]}, "a.json: values[1] must be a finite number, got nan"),
        ({"values": [10**400]}, "a.json: values[0] must be a finite number, got 1000"),
        ({"first": {"rate": 1, "interval": [1]}}, "first.interval must be a list of 2, got 1"),
        ({"flag": 1}, "a.json: flag must be true or false, got 1"),
    ],
)
def test_wrong_values_are_named_in_one_line(change, line):
    with pytest.raises(UserError) as error:
        from_json(Outer, None if change is None else GOOD | change, "a.json")
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD)[:-5])
    with pytest.raises(UserError, match=r"a\.json: not valid JSON"):
        read_dataclass(Outer, path)
