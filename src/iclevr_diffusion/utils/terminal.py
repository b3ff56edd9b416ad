"""What a command prints: on standard streams that never end it, whatever becomes of them.

A reader may go away (``| head -1``, a closed terminal), a stream may be closed from the start
(``>&-``), the disk of a log may be full, and an encoding may lack a character. None of that is
worth a traceback, or the end of a training: what cannot be printed is left out.
"""

import codecs
import io
import os
import sys
from typing import Any, TextIO

from iclevr_diffusion import __version__

REPLACED = str.maketrans(
    {"±": "+-", "×": "x", "·": ".", "→": "->", "…": "...", "–": "-", "—": "-", "√": "sqrt"}
    | {"ε": "eps", "≈": "~", "’": "'", "‘": "'", "“": '"', "”": '"', "█": "#"}
)
VERSION_FLAG = "--version"
HANDLER = "iclevr_diffusion.replace"  # of characters that an encoding lacks


class Output(io.RawIOBase):
    """The raw side of a standard stream: once a write fails, it and all that follow are dropped.

    Args:
        descriptor: 1 or 2; it leads to the null device then, also for this process's children.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # a pipe that does not wait: there is room again in a moment
            os.set_blocking(self._descriptor, True)
            return os.write(self._descriptor, data)
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._descriptor)
            os.close(null)
            return len(data)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


def make_safe() -> None:
    """Make the standard streams of this process as said above, where they are its own.

    Streams that were replaced, as notebooks and tests do, stay as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get its number
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = _safe(sys.stdout, 1)
    sys.stderr = _safe(sys.stderr, 2)


def _safe(stream: TextIO | None, descriptor: int) -> TextIO:
    encoding = "utf-8"
    if stream is not None:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED, there is no buffer
        if not isinstance(raw, io.FileIO) or raw.fileno() != descriptor:
            return stream
        encoding = stream.encoding or encoding
        stream.flush()
    buffered = io.BufferedWriter(Output(descriptor))
    return io.TextIOWrapper(buffered, encoding, errors=HANDLER, line_buffering=True)


def version_line() -> str:
    """How every command says which version it is."""
    return f"iclevr-diffusion {__version__}"


def replace(error: UnicodeError) -> tuple[str, int]:
    """What to print for characters that an encoding lacks; an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(REPLACED)
    return "".join(c if c.isascii() else "?" for c in text), error.end


codecs.register_error(HANDLER, replace)
