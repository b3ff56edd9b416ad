"""Reading of JSON files that a user may have written, with precise errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from iclevr_diffusion.utils.errors import UserError

MAX_BYTES = 100_000_000  # the course's train.json has 1.1 million


def read_json(path: Path) -> Any:
    """Read a UTF-8 JSON file.

    Raises:
        UserError: The file is missing, unreadable, empty, not UTF-8, not JSON or larger than 100
            MB, or an object in it has the same key twice. The message starts with ``path``.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES // 1_000_000} MB")
        text = path.read_bytes().decode("utf-8-sig")  # Windows editors put a BOM in front
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not valid JSON: {error.msg} ({where})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a UTF-8 JSON file that holds an object.

    Raises:
        UserError: As :func:`read_json`, or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; by default, json keeps the last of a doubled key silently."""
    content = dict(pairs)
    if len(content) < len(pairs):
        doubled, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{doubled[:80]!r:.80} is listed twice")
    return content
