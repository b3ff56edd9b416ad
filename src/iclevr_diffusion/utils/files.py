"""Files that appear whole or not at all, and folders that one process at a time writes to."""

import errno
import logging
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from iclevr_diffusion.utils.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs in one folder are not told apart
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"  # a run folder has one once its settings and its data have been checked
SUMMARY = "summary.json"  # and one of these once it has come to its end
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Of os.replace on overlay, FUSE and network file systems that can't rename everything.
NO_RENAME = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
SEAL = b"crc32 "  # what the comment of a sealed archive begins with
_LOCK = ".lock"
_PARTIAL = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.(partial|old)")  # of written_whole, save_model

log = logging.getLogger(__name__)
_said: set[str] = set()  # warnings that this process has given


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes that place once the block has ended well.

    It is on the disk before it takes that place: neither a killed process nor a power failure
    leaves half a file there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, also among processes on other machines with the same disk.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _sync(partial)
        move(partial, path)
        _sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # a failed write does not say of which file
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text: whole, or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def move(source: Path, target: Path) -> None:
    """Rename a file, which may replace another, or a folder, to a place where there is none.

    Where the file system refuses to rename it, copy it, with a warning.
    """
    try:
        source.replace(target)
    except OSError as error:
        if error.errno not in NO_RENAME:
            raise
        warn_once(
            "%s: this file system refuses to rename files (%s); they are copied, and a process that"
            " is killed meanwhile leaves half a file",
            target.parent,
            reason(error),
        )
        if source.is_dir():
            shutil.copytree(source, target)
            shutil.rmtree(source)
        else:
            shutil.copyfile(source, target)
            _sync(target)
            source.unlink()


def warn_once(message: str, *values: object) -> None:
    """Log a warning, unless this process has given it before, if with other values."""
    if message not in _said:
        _said.add(message)
        log.warning(message, *values)


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed while they wrote left below ``folder``."""
    for path in [*folder.rglob(".*.partial"), *folder.rglob(".*.old")]:
        if not _PARTIAL.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def used_alone(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which is made where it is missing, against other processes.

    On a file system without locks, nothing is held, with a warning.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another process is training there") from None
            except OSError as error:  # some of NFS, Lustre and FUSE have no locks
                warn_once(
                    "%s: this file system refuses file locks (%s); nothing keeps a second training"
                    " from writing to the same folder",
                    folder,
                    reason(error),
                )
        yield


def is_used(folder: Path) -> bool:
    """Whether a process holds ``folder`` by :func:`used_alone`.

    To find out, this takes the lock for an instant, in which a run that starts there is refused.
    """
    path = folder / _LOCK
    if fcntl is None or not path.is_file():
        return False
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # it cannot be read, or its disk knows no locks
        return False
    return False


def expand_home(path: str) -> str:
    """The path with ``~`` or ``~user`` at its beginning replaced by that home folder.

    Raises:
        UserError: there is no such user.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  Path.expanduser() raises RuntimeError
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no such home folder; ./{path} is a folder of that name")
    return expanded


def os_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system that is, or led to, ``error``."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def reason(error: OSError) -> str:
    """Why a file could not be read or written, in a few words."""
    if error.errno in NO_SPACE:
        return "no space left on the disk"
    return (error.strerror or str(error) or type(error).__name__).lower()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some network file systems open no folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (*NO_SPACE, errno.EIO):
            raise  # some file systems take folders, or read-only files, for nothing to sync
    finally:
        os.close(descriptor)


def seal(file: IO[bytes]) -> None:
    """Add a sum over all bytes of a zip archive to it, as the archive's comment.

    The sums in the archive itself leave out its headers and what lies between the entries.

    Args:
        file: open for reading and writing; without a comment, so its last two bytes are the length
            of that.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 2)
    file.write(len(_comment(0)).to_bytes(2, "little"))
    comment = _comment(_crc32(file, size))
    file.seek(size)
    file.write(comment)


def is_intact(path: Path) -> bool:
    """Whether a zip archive is as it was written: all of it where it is sealed, else its entries.

    Raises:
        Exception: of many kinds, where it is no archive or badly damaged.
    """
    with path.open("rb") as file:
        size = max(0, file.seek(0, os.SEEK_END) - len(_comment(0)))
        file.seek(size)
        comment = file.read()
        if comment.startswith(SEAL):
            return comment == _comment(_crc32(file, size))
    with zipfile.ZipFile(path) as archive:  # of before there were seals
        return not archive.comment and archive.testzip() is None


def _comment(crc32: int) -> bytes:
    return SEAL + b"%08x" % crc32


def _crc32(file: IO[bytes], size: int) -> int:
    """Of the first ``size`` bytes."""
    file.seek(0)
    total, left = 0, size
    while left > 0 and (chunk := file.read(min(left, 1 << 22))):
        total, left = zlib.crc32(chunk, total), left - len(chunk)
    return total
