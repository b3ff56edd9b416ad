"""Problems with many files, collected and reported in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from iclevr_diffusion.utils.errors import UserError

_SHOWN = 3


class Problems:
    """Problems by kind, each with the names it concerns. False if there is none."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str | None = None) -> None:
        """Add a problem; one without ``name`` occurs once, such as a malformed file."""
        names = self._names.setdefault(kind, [])
        if name is not None:
            names.append(name)

    def update(self, kinds_by_name: Mapping[str, str]) -> None:
        """Add several problems, given as name → kind."""
        for name, kind in kinds_by_name.items():
            self.add(kind, name)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Add a :class:`UserError` raised in the block as a problem, instead of raising it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def __bool__(self) -> bool:
        return bool(self._names)

    def __str__(self) -> str:
        """Return all kinds in one line: ``empty file: 5 (a.png, b.png, c.png, ...); ...``."""
        return "; ".join(
            f"{kind}: {summary(names)}" if names else kind for kind, names in self._names.items()
        )


def summary(names: list[str]) -> str:
    """Return the number of names and the first few of them, safe to print."""
    shown = [repr(name)[1:-1][:80] for name in names[:_SHOWN]]
    more = ["..."] if len(names) > _SHOWN else []
    return f"{len(names)} ({', '.join(shown + more)})"
