"""Values of a composed config, checked against type hints."""

import collections.abc
import inspect
import math
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, ListConfig, OmegaConf

from iclevr_diffusion.utils.files import expand_home
from iclevr_diffusion.utils.text import any_of, fits_utf8, one_line

SHOWN = 80  # characters of a wrong value
NAMES: dict[Any, tuple[str, str]] = {  # one of them, several of them
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    bool: ("true or false", "true and false"),
    str: ("text", "text"),
    types.NoneType: ("null", "null"),
}
LISTS = (list, tuple, set, frozenset)
ABSTRACT_LISTS = (
    collections.abc.Sequence,
    collections.abc.Collection,
    collections.abc.Iterable,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def parts(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, ``Annotated`` unwrapped; of any other hint, itself."""
    if get_origin(hint) is Annotated:
        return parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(dict.fromkeys(part for member in get_args(hint) for part in parts(member)))
    return (hint,)


def is_path(hint: Any) -> bool:
    """Return whether values of this type are paths, or lists of paths."""
    return any(
        part in (Path, os.PathLike)
        or get_origin(part) is os.PathLike
        or (is_list(part) and any(is_path(item) for item in items(part)))
        for part in parts(hint)
    )


def is_list(hint: Any) -> bool:
    """Return whether a type hint is a list or sequence."""
    return hint in LISTS or get_origin(hint) in (*LISTS, *ABSTRACT_LISTS)


def is_mapping(hint: Any) -> bool:
    """Return whether a type hint is a mapping."""
    return hint in MAPPINGS or get_origin(hint) in MAPPINGS


def items(hint: Any) -> tuple[Any, ...]:
    """Return the types of a list's items; of a mapping's values; empty where any will do."""
    arguments = get_args(hint)
    if is_mapping(hint):
        arguments = arguments[1:]
    return tuple(dict.fromkeys(item for item in arguments if item is not Ellipsis))


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a type: finite numbers of 64 bits, UTF-8 text without NUL.

    Where an object is expected, the mapping that builds it fits. Empty text is no valid path.
    """
    if isinstance(value, str) and not value.strip() and is_path(hint):
        return False
    return any(_fits(value, part) for part in parts(hint))


def _fits(value: Any, part: Any) -> bool:
    if get_origin(part) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(part))
    if is_list(part):
        wanted = items(part)
        return isinstance(value, ListConfig) and all(
            not wanted or any(fits(entry, item) for item in wanted) for entry in value
        )
    if is_mapping(part):
        wanted = items(part)
        return isinstance(value, DictConfig) and all(
            not wanted or any(fits(entry, item) for item in wanted) for entry in value.values()
        )
    if part in (int, float) and type(value) is int:
        return in_64_bits(value)
    if part is float:
        return type(value) is float and math.isfinite(value)
    if part is str or is_path(part):
        return type(value) is str and "\0" not in value and fits_utf8(value)
    if part in NAMES:
        return type(value) is part or (part is types.NoneType and value is None)
    return not inspect.isclass(part) or part in (object, Any) or isinstance(value, DictConfig)


def in_64_bits(value: int) -> bool:
    """Return whether a whole number fits into 64 bits."""
    return -(2**63) <= value < 2**63


def converted(value: Any, hint: Any) -> Any:
    """Return the value with numbers as text where text belongs, and ``~`` expanded in paths.

    Raises:
        UserError: There is no home folder ``~user``.
    """
    if not fits(value, hint) and fits(text := _as_text(value), hint):
        value = text
    return _expanded(value) if is_path(hint) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, ListConfig):
        return ListConfig([_as_text(entry) for entry in value])
    return str(value) if type(value) in (int, float) else value


def _expanded(value: Any) -> Any:
    if isinstance(value, ListConfig):
        return ListConfig([_expanded(entry) for entry in value])
    return expand_home(value) if isinstance(value, str) and value.startswith("~") else value


def words(hint: Any) -> str:
    """Return a type in words, such as ``a whole number or null``."""
    return any_of(dict.fromkeys(_words(part) for part in parts(hint)))


def _words(part: Any) -> str:
    if part in NAMES:
        return NAMES[part][0]
    if is_path(part) and not is_list(part):
        return NAMES[str][0]
    if get_origin(part) is Literal:
        choices = [shown(choice).strip("'") for choice in get_args(part)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if is_list(part):
        return "a list" + _of(part)
    if is_mapping(part) and all(item in NAMES for item in items(part)) and items(part):
        return f"a mapping to {NAMES[items(part)[0]][1]}"
    return "a group of settings"


def _of(part: Any) -> str:
    """Return the items of a list, in words."""
    wanted = items(part)
    if wanted and is_list(wanted[0]):
        pair = get_args(wanted[0])
        several = "pairs" if len(pair) == 2 and Ellipsis not in pair else "lists"
        return f" of {several}{_of(wanted[0])}"
    names = [NAMES[str if is_path(item) else item][1] for item in wanted if item in NAMES]
    return f" of {' or '.join(dict.fromkeys(names))}" if names else ""


def shown(value: Any) -> str:
    """Return a value as YAML writes it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return one_line(value)
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value)
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
