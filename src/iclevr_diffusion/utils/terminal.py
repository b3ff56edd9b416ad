"""Standard streams whose failure never ends a command.

The other end may close (``| head -1``, a closed terminal), a stream may be closed from the start
(``>&-``), the disk of a log may be full, and an encoding may lack a character. None of these should
cause a traceback or end a training: what cannot be printed is omitted.
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
HANDLER = "iclevr_diffusion.replace"  # error handler for characters that an encoding lacks


class Output(io.RawIOBase):
    """The raw part of a standard stream; after a failed write, all output is dropped.

    Args:
        descriptor: 1 or 2; after a failure it is the null device, also for child processes.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # a non-blocking pipe that is full
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
    """Replace the standard streams of this process by safe ones.

    Streams that were replaced before, as in notebooks and tests, are left as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would get this number
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stdout = _safe(sys.stdout, 1)
    sys.stderr = _safe(sys.stderr, 2)


def _safe(stream: TextIO | None, descriptor: int) -> TextIO:
    encoding = "utf-8"
    if stream is not None:
        buffer = getattr(stream, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # there is no buffer with PYTHONUNBUFFERED
        if not isinstance(raw, io.FileIO) or raw.fileno() != descriptor:
            return stream
        encoding = stream.encoding or encoding
        stream.flush()
    buffered = io.BufferedWriter(Output(descriptor))
    return io.TextIOWrapper(buffered, encoding, errors=HANDLER, line_buffering=True)


def version_line() -> str:
    """Return the output of ``--version``."""
    return f"iclevr-diffusion {__version__}"


def replace(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks; an error handler of :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(REPLACED)
    return "".join(c if c.isascii() else "?" for c in text), error.end


codecs.register_error(HANDLER, replace)
