"""Text that is safe to show, and to write."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MAX_LENGTH = 300


def one_line(value: Any, length: int = MAX_LENGTH) -> str:
    """Format any value as a single line of at most ``length`` characters.

    Characters that control a terminal, turn the direction of writing, or cannot be written in
    UTF-8 are replaced.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    line = " ".join(str(value).split())
    line = "".join(c if c.isprintable() else "�" for c in line)
    return line if len(line) <= length else f"{line[:length]}…"


def any_of(words: Iterable[str]) -> str:
    """Join at least one word as alternatives, such as ``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def in_shell(text: str | Path) -> str:
    """Return a text or a path as a shell needs it, in quotes if need be."""
    return shlex.quote(str(text))


def fits_utf8(text: str) -> bool:
    """Return whether a text can be written as UTF-8; a command line may hold other bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
