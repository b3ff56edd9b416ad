"""How a run stands, as a file in its folder."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from iclevr_diffusion.errors import Stopped
from iclevr_diffusion.files import write_text

STATUS = "status.json"


def write_status(folder: Path, status: str, message: str, overrides: Sequence[str]) -> None:
    """Write ``status.json``.

    Args:
        status: ``running``, ``finished``, ``stopped`` or ``failed``. A run that was killed still
            says ``running``, but nobody holds its folder.
        message: what ended it, in one line.
        overrides: what its command line set.
    """
    content = {"status": status, "message": message, "overrides": list(overrides)}
    write_text(folder / STATUS, json.dumps(content, indent=2) + "\n")


@contextmanager
def status_kept(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Inside, the run in ``folder`` is running; after that, how it ended."""
    write_status(folder, "running", "", overrides)
    try:
        yield
    except BaseException as error:
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        message = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # a full disk, for one: the error itself is told anyway
            write_status(folder, status, message, overrides)
        raise
    write_status(folder, "finished", "", overrides)
