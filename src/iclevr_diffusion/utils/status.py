"""How a run stands, as a file in its folder."""

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
        status: ``running``, ``finished``, ``stopped`` or ``failed``. A run that was killed still
            says ``running``, but nobody holds its folder.
        message: what ended it, in one line.
        overrides: what its command line set.
        more: whatever else there is to say.
    """
    content = {"status": status, "message": message, "overrides": list(overrides), **more}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_text(folder / STATUS, text + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """What is known of a run; nothing where it has left no status, or none that can be read."""
    try:
        status = json.loads((folder / STATUS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def status_after(error: BaseException) -> str:
    """How a run stands that an error ended."""
    return "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"


@contextmanager
def status_kept(folder: Path, overrides: Sequence[str], **more: Any) -> Iterator[None]:
    """Inside, the run in ``folder`` is running; after that, how it ended.

    Args:
        more: as for :func:`write_status`.
    """
    write_status(folder, "running", "", overrides, **more)
    try:
        yield
    except BaseException as error:
        message = " ".join(str(error).split()) or type(error).__name__
        with suppress(OSError):  # a full disk, for one: the error itself is told anyway
            write_status(folder, status_after(error), message, overrides, **more)
        raise
    write_status(folder, "finished", "", overrides, **more)
