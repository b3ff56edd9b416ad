"""Integers from environment variables."""

import os


def number(name: str, default: int | None) -> int:
    value = os.environ.get(name)
    if value is None or (value == "" and default is not None):
        if default is None:
            raise KeyError(name)
        return default
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def required(name: str) -> int:
    return number(name, None)
