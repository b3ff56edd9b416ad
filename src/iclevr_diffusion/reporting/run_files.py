"""The files of a run, which are not trusted: a damaged file is noted and counts as missing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import reason
from iclevr_diffusion.utils.json import read_json
from iclevr_diffusion.utils.text import one_line
from iclevr_diffusion.utils.typed_json import from_json

MAX_BYTES = 100_000_000  # of any file
MAX_YAML_BYTES = 1_000_000
LARGEST = 1e30

T = TypeVar("T")


class RunFiles:
    """The files in the folder of one run.

    Args:
        folder: The run folder; nothing outside of it is read, wherever links lead.

    Attributes:
        problems: One line for each file that could not be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def read(self, name: str | Path, load: Callable[[Path], T]) -> T | None:
        """Call ``load`` with the path of a file; None if it does not exist or is damaged.

        Args:
            name: Relative to the folder.
            load: Raises OSError or UserError for a damaged file.
        """
        path = self.folder / name
        try:
            if not path.is_file():
                return None
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError("a link that leads out of the run's folder; it is not followed")
            if path.stat().st_size > MAX_BYTES:
                raise UserError(f"larger than {MAX_BYTES // 1_000_000} MB")
            return load(path)
        except OSError as error:
            self._note(path, reason(error))
        except UserError as error:
            self._note(path, str(error).removeprefix(str(path)).lstrip(": "))
        except RecursionError:
            self._note(path, "nested too deeply")
        return None

    def json(self, name: str, kind: type[T]) -> T | None:
        """Read a dataclass from a JSON file; its strings are single lines."""
        return self.read(name, lambda path: from_json(kind, clean(read_json(path)), str(path)))

    def yaml(self, name: str) -> dict[str, Any] | None:
        """Read the plain values of a YAML file; its strings are single lines."""
        return self.read(name, _read_yaml)

    def _note(self, path: Path, what: str) -> None:
        self.problems.append(one_line(f"{path.relative_to(self.folder)}: {what}"))


class _Loader(yaml.SafeLoader):
    """Loads plain values only. Aliases, which could grow without end, are in no run's config."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of names and values; interpolations such as ``${oc.env:HOME}`` stay text."""
    if path.stat().st_size > MAX_YAML_BYTES:
        raise UserError(f"larger than {MAX_YAML_BYTES // 1_000_000} MB")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError:
        raise
    except Exception as error:
        # Apart from YAMLError, PyYAML passes on the errors of its constructors: KeyError for
        # "!!bool x", AttributeError for "!!timestamp x", RecursionError, …
        raise UserError(f"not a YAML file of plain values: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"expected names and values, got {type(content).__name__}")
    return dict(clean(content))


def clean(tree: Any) -> Any:
    """Make the strings and the keys of nested lists and dicts single lines.

    Raises:
        UserError: A number is too large to compute with.
    """
    if isinstance(tree, dict):
        return {one_line(key): clean(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [clean(value) for value in tree]
    if isinstance(tree, int | float) and abs(tree) > LARGEST:  # figures are squared and summed
        raise UserError("a number is too large")
    return one_line(tree) if isinstance(tree, str) else tree


def number(text: str | None) -> float | None:
    """Return the finite number in a setting, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
