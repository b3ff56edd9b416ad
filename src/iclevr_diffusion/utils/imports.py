"""Import libraries without those of their dependencies that are not needed here."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

COMPILER = "torch._dynamo"
PACKAGE = __name__.partition(".")[0]


def is_own_code(target: object) -> bool:
    """Return whether a class or function is this package's, not a user's or a library's."""
    return getattr(target, "__module__", "").partition(".")[0] == PACKAGE


def import_diffusers() -> None:
    """Import diffusers without torch.compile's implementation, half of the time it takes.

    diffusers marks some of its blocks for torch.compile, and leaves them unmarked where it cannot
    import ``torch._dynamo``. Compiled later, an unmarked block is traced like any other. Call this
    first in a program that compiles nothing; it has no effect once either has been imported.
    """
    import torch  # noqa: F401  # by itself: it has to find everything

    if "diffusers" in sys.modules:
        return
    with _hidden(COMPILER):
        try:
            import_module("diffusers.utils.torch_utils")
        except ImportError:  # a version that insists on it: what imports diffusers next says more
            return


@contextmanager
def deferred(name: str) -> Iterator[None]:
    """Within the block, ``import name`` only runs that module once it is used.

    A module that is imported already, or is not installed, is left alone.
    """
    finder = _DeferringFinder(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _DeferringFinder(MetaPathFinder):
    """Finds one module, with the standard library's lazy loader."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == self.name else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let imports of a module that is not loaded yet raise ModuleNotFoundError in the block."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # documented: it is not to be found
    try:
        yield
    finally:
        del sys.modules[name]
