"""The folder that a command draws into."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from iclevr_diffusion.cli.run_dir import new_folder, refuse_taken
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home, reason


def refuse_overwriting(out: str | None, *names: str) -> None:
    """Check that ``out`` holds none of the files that are going to be written there.

    Raises:
        UserError: it does.
    """
    if out is not None:
        refuse_taken(Path(expand_home(out)), names)


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
            path = Path(expand_home(parent if out is None else out))
            made += [folder for folder in (path, *path.parents) if not folder.exists()]
            if out is None:
                path = Path(new_folder(str(path)))
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
