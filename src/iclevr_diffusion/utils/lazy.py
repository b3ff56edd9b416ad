"""Attributes of a package that are imported on first use (PEP 562)."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_attributes(
    package: str, **locations: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__``, which imports attributes on first use, and ``__dir__``.

    Example::

        __getattr__, __dir__ = lazy_attributes(__name__, EMA="ema")

    Args:
        package: The package's ``__name__``.
        locations: The submodule of each attribute, relative to the package, as ``data.labels``, or
            ``data.labels:NAMES`` if the attribute has another name there.
    """

    def load(name: str) -> Any:
        if name not in locations:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = locations[name].partition(":")
        value = getattr(import_module(f"{package}.{module}"), attribute or name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: list(sys.modules[package].__all__)
