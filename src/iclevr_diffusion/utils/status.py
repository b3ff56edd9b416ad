"""The status of a run, as a file in its folder."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iclevr_diffusion.utils.errors import Stopped
from iclevr_diffusion.utils.files import write_text

STATUS = "status.json"


def write_status(
    folder: Path, status: str, message: str, overrides: Sequence[str], **more: Any
) -> None:
    """Write ``status.json``.

    Args:
        folder: Folder of the run.
        status: ``running``, ``finished``, ``stopped`` or ``failed``. The status of a killed run is
            still ``running``, but its folder is not locked.
        message: What ended the run, in one line.
        overrides: Settings of its command line.
        more: Further entries.
    """
    content = {"status": status, "message": message, "overrides": list(overrides), **more}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(folder / STATUS, text + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """Read the status of a run; empty if there is none, or none that can be read."""
    try:
        status = json.loads((folder / STATUS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def status_after(error: BaseException) -> str:
    """Return the status of a run that an error has ended."""
    return "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"


@contextmanager
def status_kept(folder: Path, overrides: Sequence[str], **more: Any) -> Iterator[None]:
    """Write ``running`` when the context is entered, and the outcome of the run when it is left.

    The arguments are those of :func:`write_status`.
    """
    write_status(folder, "running", "", overrides, **more)
    try:
        yield
    except BaseException as error:
        message = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # such as a full disk; the error itself is reported anyway
            write_status(folder, status_after(error), message, overrides, **more)
        raise
    write_status(folder, "finished", "", overrides, **more)
