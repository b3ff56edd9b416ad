"""The folder that a door draws into."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.files import reason
from iclevr_diffusion.folders import new_folder


@contextmanager
def output_folder(out: str | None, parent: str) -> Iterator[Path]:
    """A folder that can be written to: ``out``, or where that is None, a new one in ``parent``.

    It is tried before the block begins. What was made for it goes again where nothing was written.

    Raises:
        UserError: nothing can be written there.
    """
    made: list[Path] = []
    try:
        try:
            path = Path(parent if out is None else out)
            made += [folder for folder in (path, *path.parents) if not folder.exists()]
            if out is None:
                path = Path(new_folder(parent))
                made.insert(0, path)
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(f"out={path}: cannot write there: {reason(error)}") from error
        yield path
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()
