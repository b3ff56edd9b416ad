"""Arrays that are built once, stored on disk, and memory-mapped afterwards."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import atomic_path, reason, warn_once
from iclevr_diffusion.utils.folders import make_folder, remove_if_empty

try:
    import fcntl
except ImportError:  # not a POSIX system: simultaneous processes each build their own copy
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

log = logging.getLogger(__name__)


def cached_array(folder: Path, key: str, build: Callable[[], Array]) -> Array:
    """Return the array in ``folder/key.npy``, memory-mapped and read-only; build it if necessary.

    If the file system refuses memory maps, the array is read into memory, with a warning.

    ``build`` runs only if the file is missing or damaged, and in one process if several need the
    array at once. The file is written atomically. ``key`` must identify everything that ``build``
    reads, and the array must have a plain dtype (no objects).

    Raises:
        UserError: The folder cannot be read or written, or its disk is full.
        Exception: Whatever ``build`` raises; then nothing is written.
    """
    path = folder / f"{key}.npy"
    array = _open(path)
    if array is None:
        with _locked(path):
            array = _open(path)  # another process may have built it while this one waited
            if array is None:
                _write(path, build())
                array = _open(path)
    if array is None:
        raise UserError(f"the cache file {path} cannot be read back; is something else writing it?")
    return array


def as_tensor(array: Array) -> "Tensor":
    """Wrap an array from :func:`cached_array` in a tensor, without a copy.

    Writing to the tensor changes the pages of this process only, never the file.
    """
    import torch  # takes seconds, which callers that want the array alone need not spend

    view = array.view(np.ndarray)
    view.flags.writeable = True  # torch warns about read-only arrays; these pages are private
    return torch.from_numpy(view)


def _open(path: Path) -> Array | None:
    """Return the mapped array; None if the file is missing, truncated or otherwise damaged."""
    try:
        # Copy on write, so that a stray write through a tensor causes no segmentation fault.
        array = np.lib.format.open_memmap(path, mode="c")
        offset = getattr(array, "offset", 0)
        if offset + array.nbytes != path.stat().st_size:
            raise ValueError("its length does not match its header")
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged, or maps are refused: OSError, ValueError, MemoryError
        return _read(path, error)
    array.flags.writeable = False
    return array


def _read(path: Path, refusal: Exception) -> Array | None:
    """Return the array without a memory map, read-only; None if the file is damaged.

    Args:
        path: The file.
        refusal: The error of the memory map.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("its length does not match its header")
    except OSError as error:
        raise UserError(f"cannot read the cache file {path}: {reason(error)}") from error
    except Exception as error:  # numpy parses the header as Python: ValueError, TokenError, ...
        log.warning("the cache file %s is damaged (%s); building it again", path, error)
        return None
    warn_once(
        "%s: this file system refuses memory maps (%s); each process reads the frames into memory"
        " of its own (%.0f MB)",
        path.parent,
        reason(refusal) if isinstance(refusal, OSError) else refusal,
        array.nbytes / 1e6,
    )
    view = array.view()  # as_tensor makes its own view of the memory writable
    view.flags.writeable = False
    return view


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path``; if the file system has no locks, continue without one."""
    lock_path = path.with_name(f".{path.stem}.lock")
    try:
        make_folder(path.parent)
        lock = lock_path.open("wb")
    except OSError as error:
        remove_if_empty(path.parent)
        raise UserError(f"cannot write to the cache {path.parent}: {reason(error)}") from error
    with lock:
        try:
            if fcntl is not None:
                # Network disks may refuse. Two processes then build the same array, harmlessly.
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            # Removed while still held: a process that waited for it looks for the array first.
            with contextlib.suppress(OSError):
                lock_path.unlink()
            remove_if_empty(path.parent)


def _write(path: Path, array: Array) -> None:
    """Write ``array`` to ``path`` atomically."""
    array = np.ascontiguousarray(array)
    try:
        # Creates the folder again if another process failed and removed it.
        with atomic_path(path) as partial, partial.open("xb") as file:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)  # ndarray.tofile would lose the reason for a failure
    except OSError as error:
        size = f"{array.nbytes / 1e6:.0f} MB"
        raise UserError(
            f"cannot write {size} to the cache {path.parent}: {reason(error)}; "
            "free some space there or use another folder"
        ) from error
