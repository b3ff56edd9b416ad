"""The output folder of a command."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iclevr_diffusion.cli.run_dir import has_begun, new_folder, refuse_taken
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home, reason
from iclevr_diffusion.utils.folders import make_folder, remove_if_empty


def refuse_overwriting(out: str | None, *names: str, in_run: str | None = None) -> None:
    """Refuse a folder ``out`` in that of a run, or with one of the files to be written.

    Args:
        out: The folder; None for a new one.
        names: The names of the files; without any, the folder must be empty.
        in_run: Name of the command's own folder in a run, which is allowed; None if it has none.

    Raises:
        UserError: One of the files exists, or a run has begun there or above.
    """
    if out is None:
        return
    path = Path(expand_home(out))
    whole = path.resolve()
    run = next((folder for folder in (whole, *whole.parents) if has_begun(folder)), None)
    if run is not None and (in_run is None or whole != run / in_run):
        what = "the folder of a run" if whole == run else "in the folder of a run"
        advice = "" if in_run is None else f", or {in_run} in it"
        raise UserError(f"out={out} is {what}; name another{advice}")
    if names:
        refuse_taken(path, names)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"out={out} already exists; name a new folder")


@contextmanager
def output_folder(out: str | None, parent: str) -> Iterator[Path]:
    """Yield a writable folder: ``out``, or if that is None, a new one in ``parent``.

    It is tested before the block. Folders that were created for it are removed if they stay empty.

    Raises:
        UserError: Nothing can be written there.
    """
    path = Path(expand_home(parent if out is None else out))
    try:
        try:
            path = Path(new_folder(str(path))) if out is None else path
            make_folder(path)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(f"out={path}: cannot write there: {reason(error)}") from error
        yield path
    finally:
        remove_if_empty(path)
