"""Dataclasses as JSON files, with the types of their fields checked when they are read."""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.json import read_json

T = TypeVar("T")
LARGEST_INT = 2**63


def write_dataclass(path: Path, value: Any) -> None:
    """Write a dataclass as JSON, atomically."""
    write_text(path, json.dumps(dataclasses.asdict(value), indent=2) + "\n")


def read_dataclass(kind: type[T], path: Path) -> T:
    """Read a dataclass from a JSON file.

    Raises:
        UserError: The file cannot be read, or is not JSON of that dataclass.
    """
    return from_json(kind, read_json(path), str(path))


def from_json(kind: type[T], content: Any, where: str) -> T:
    """Make a dataclass of the content of a JSON file.

    Fields may be numbers, strings, booleans, None, lists, tuples, dicts with string keys, and
    dataclasses of those. Numbers have to be finite. Unknown keys are ignored, so that files of
    later versions can be read.

    Raises:
        UserError: A field is missing or of another type; the message begins with ``where``.
    """
    try:
        result: T = _value(kind, content, "")
    except _Mismatch as error:
        raise UserError(f"{where}: {error}") from None
    return result


class _Mismatch(Exception):
    """A value that does not fit its type."""


def _value(hint: Any, value: Any, name: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _fields(hint, value, name)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, name)
    if origin is dict:
        mapping = _expect(dict, value, name, "an object")
        return {key: _value(arguments[1], mapping[key], _inside(name, key)) for key in mapping}
    if origin in (list, tuple):
        items = _expect(list, value, name, "a list")
        if origin is tuple and len(items) != len(arguments):
            raise _Mismatch(f"{name} must be a list of {len(arguments)}, got {len(items)}")
        kinds = arguments if origin is tuple else arguments * len(items)
        pairs = enumerate(zip(kinds, items, strict=True))
        return origin(_value(kind, item, f"{name}[{index}]") for index, (kind, item) in pairs)
    if hint is float:
        return _number(value, name)
    if hint is int and (type(value) is not int or abs(value) >= LARGEST_INT):
        raise _Mismatch(f"{name} must be a whole number, got {_shown(value)}")
    words = {str: "a string", bool: "true or false", int: "a whole number", type(None): "null"}
    return _expect(hint, value, name, words[hint])


def _fields(kind: Any, value: Any, name: str) -> Any:
    content = _expect(dict, value, name, "an object")
    hints = get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        inside = _inside(name, field.name)
        if field.name in content:
            given[field.name] = _value(hints[field.name], content[field.name], inside)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise _Mismatch(f"{inside} is missing")
    return kind(**given)


def _union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    error: _Mismatch | None = None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _value(kind, value, name)
            except _Mismatch as mismatch:
                error = error or mismatch
    raise error or _Mismatch(f"{name} must be null")


def _number(value: Any, name: str) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise _Mismatch(f"{name} must be a finite number, got {_shown(value)}")


def _expect(kind: type, value: Any, name: str, what: str) -> Any:
    if type(value) is not kind:
        raise _Mismatch(f"{name or 'the content'} must be {what}, got {_shown(value)}")
    return value


def _inside(name: str, key: str) -> str:
    return f"{name}.{key:.60}" if name else f"{key:.60}"


def _shown(value: Any) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else type(value).__name__
