"""Progress of a command: a bar on a terminal, or lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from tqdm import tqdm

LINES = 20  # maximum number of lines if the total is known, besides the first and the last
PAUSE = 10.0  # minimum number of seconds between lines
GROWTH = 1.5  # factor of the time between lines if the total is unknown


class Progress(Protocol):
    """The result of :func:`progress`; a :class:`tqdm.tqdm` is one."""

    def update(self, n: int = 1) -> object:
        """Advance by ``n``."""

    def set_description(self, desc: str) -> object:
        """Set the description of the current work."""


class ProgressLines:
    """Progress as lines of text: about twenty, however long it takes.

    A line is due after each twentieth of the total, but not within ten seconds of the previous one.
    If the total is unknown, the time between lines grows by half each time.

    Args:
        unit: Unit of the count, such as ``step``.
        total: The total; None if unknown.
        stream: Stream of the lines; None for the current standard error.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        unit: str,
        total: int | None = None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unit = unit
        self.total = total
        self.done = 0
        self._description = ""
        self._stream = stream
        self._clock = clock
        self._start = self._last = clock()
        self._first_done = 0
        self._written = 0
        self._pause = PAUSE

    def begin(self, done: int, total: int | None) -> None:
        """Start at ``done``, where a run was resumed, up to ``total``."""
        self.done = self._first_done = self._written = done
        self.total = total
        self._start = self._last = self._clock()

    def set_description(self, desc: str) -> None:
        self._description = desc

    def update(self, n: int = 1) -> None:
        self.done += n
        if self.is_due():
            self.write()

    def is_due(self) -> bool:
        """Return whether a line is due."""
        if self._clock() - self._last < self._pause:
            return False
        return self.total is None or (self.done - self._written) * LINES >= self.total

    def write(self, more: str = "") -> None:
        """Write a line that ends with ``more``."""
        now = self._clock()
        speed = (self.done - self._first_done) / max(now - self._start, 1e-9)
        parts = [f"{self.done}{f'/{self.total}' if self.total else ''} {self.unit}s"]
        if self.total:
            parts[0] += f" ({100 * self.done // self.total} %)"
        parts.append(f"{tqdm.format_interval(round(now - self._start))} so far")
        if self.total and speed > 0 and self.done < self.total:
            left = round((self.total - self.done) / speed)
            parts.append(f"{tqdm.format_interval(left)} to go")
        parts += [more] if more else []
        head = f"{self._description}: " if self._description else ""
        print(head + ", ".join(parts), file=self._stream or sys.stderr, flush=True)
        self._last, self._written = now, self.done
        if self.total is None:
            self._pause *= GROWTH


@contextmanager
def progress(total: int, unit: str) -> Iterator[Progress]:
    """Show the progress on standard error, as a bar if that is a terminal."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=unit, leave=False) as bar:
            yield bar
    else:
        yield ProgressLines(unit, total)
