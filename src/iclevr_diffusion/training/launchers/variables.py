"""Integers from environment variables."""

import os


def number(name: str, default: int | None) -> int:
    """Return a variable, or ``default`` if it is not set or empty.

    Raises:
        KeyError: It is not set, and there is no default.
        ValueError: It is not a whole number.
    """
    value = os.environ.get(name)
    if value is None or (value == "" and default is not None):
        if default is None:
            raise KeyError(name)
        return default
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def required(name: str) -> int:
    """Return a variable that must be set; see :func:`number`."""
    return number(name, None)
