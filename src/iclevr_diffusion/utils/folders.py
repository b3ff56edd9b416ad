"""Folders that this process creates, and removes again if they stay empty."""

import os
from contextlib import suppress
from pathlib import Path

_made: set[Path] = set()


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, unless they exist; see :func:`remove_if_empty`."""
    path = _absolute(folder)
    _made.update(parent for parent in (path, *path.parents) if not parent.exists())
    folder.mkdir(parents=True, exist_ok=True)


def make_new_folder(folder: Path) -> None:
    """Create a folder in an existing one.

    Raises:
        FileExistsError: It exists.
        FileNotFoundError: Its parent does not exist.
    """
    folder.mkdir()
    _made.add(_absolute(folder))


def remove_if_empty(folder: Path) -> None:
    """Remove an empty folder that this process has created.

    Its parents are removed as well, if they were created for it and are empty.
    """
    folder = _absolute(folder)
    with suppress(OSError):  # it is not empty
        while folder in _made:
            with suppress(FileNotFoundError):
                folder.rmdir()
            folder = folder.parent


def _absolute(path: Path) -> Path:
    """Return the path without ``..``; links are kept."""
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute() keeps ".."
