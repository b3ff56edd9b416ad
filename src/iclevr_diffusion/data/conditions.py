"""Condition lists: JSON files that say which pictures to draw, as the course's ``test.json``."""

from pathlib import Path
from typing import Any

from iclevr_diffusion import labels
from iclevr_diffusion.data.jsonfile import read_json
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.labels import LabelSet

_EXAMPLE = '[["red cube"], ["blue cube", "gray sphere"]]'


def read_conditions(path: str | Path) -> list[LabelSet]:
    """The label sets of a JSON file such as ``[["red cube"], ["blue cube", "gray sphere"]]``.

    Raises:
        UserError: the file is missing or no such list, is empty, or an entry (counted from 1) is
            empty, names an unknown label or one label twice.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected a list of lists of labels, such as {_EXAMPLE}")
    if not entries:
        raise UserError(f"{path}: the list is empty; write for example {_EXAMPLE}")
    return [_label_set(entry, f"{path}: entry {n}") for n, entry in enumerate(entries, start=1)]


def _label_set(entry: Any, where: str) -> LabelSet:
    if not isinstance(entry, list) or not all(isinstance(name, str) for name in entry):
        raise UserError(f"{where}: expected a list of labels; the whole file looks like {_EXAMPLE}")
    try:
        return labels.check(entry)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
