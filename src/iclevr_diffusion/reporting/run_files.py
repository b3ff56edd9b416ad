"""A run's files, read without trust: what is damaged is noted, and taken as missing."""

import math
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import reason
from iclevr_diffusion.utils.json import read_json

MAX_BYTES = 100_000_000  # of any file
MAX_YAML_BYTES = 1_000_000
SHOWN = 300  # characters of a text from a file

T = TypeVar("T")


class RunFiles:
    """The files of one run's folder.

    Args:
        folder: the run's; nothing outside of it is read, wherever a link leads.

    Attributes:
        problems: what could not be read, and why, a line each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def read(self, path: Path, reader: Callable[[Path], T]) -> T | None:
        """What ``reader`` makes of a file; None where there is none, or it is no use."""
        try:
            if not path.is_file():
                return None
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError("a link that leads out of the run's folder; it is not followed")
            if path.stat().st_size > MAX_BYTES:
                raise UserError(f"larger than {MAX_BYTES // 1_000_000} MB")
            return reader(path)
        except OSError as error:
            self._note(path, reason(error))
        except UserError as error:
            self._note(path, str(error).removeprefix(str(path)).lstrip(": "))
        return None

    def json(self, name: str) -> dict[str, Any] | None:
        return self.read(self.folder / name, lambda path: _mapping(read_json(path)))

    def yaml(self, name: str) -> dict[str, Any] | None:
        return self.read(self.folder / name, lambda path: _mapping(read_yaml(path)))

    def _note(self, path: Path, what: str) -> None:
        self.problems.append(one_line(f"{path.relative_to(self.folder)}: {what}"))


class _Loader(yaml.SafeLoader):
    """Plain values only. No config that a run wrote has aliases, which could grow without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; interpolations such as ``${oc.env:HOME}`` stay text.

    Raises:
        UserError: it is not YAML of at most a megabyte.
    """
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"larger than {MAX_YAML_BYTES // 1_000_000} MB")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError:
        raise
    except Exception as error:
        # Beside YAMLError, PyYAML lets through what its constructors run into: KeyError for
        # "!!bool x", AttributeError for "!!timestamp x", RecursionError, …
        raise UserError(f"not a YAML file of plain values: {error}") from error


def _mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"expected names and values, got {type(content).__name__}")
    return content


def flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    for key, value in tree.items():
        name = prefix + one_line(key)
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, one_line(value)


def number(tree: Any, *keys: str) -> float | None:
    """A finite number in nested mappings; None where there is none."""
    value = _at(tree, keys)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def words(tree: Any, *keys: str) -> str:
    """A text in nested mappings, as one line; nothing where there is none."""
    value = _at(tree, keys)
    return one_line(value) if isinstance(value, str | int | float) else ""


def _at(tree: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def one_line(value: Any) -> str:
    """Any value as a short text that can be shown: one line, no control characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    line = " ".join(str(value).split())
    # Cc controls a terminal, Cf turns the direction of writing, Cs cannot be written in UTF-8.
    line = "".join(c if unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in line)
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
