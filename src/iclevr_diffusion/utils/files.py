"""Atomic writes, checksums of archives, and locks on folders."""

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
except ImportError:  # not a POSIX system: two runs in one folder are not detected
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.yaml"  # in a run folder once its settings and data have been checked
SUMMARY = "summary.json"  # in the folder of a finished run
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Errors of os.replace on overlay, FUSE and network file systems that cannot rename everything.
NO_RENAME = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
SEAL = b"crc32 "  # prefix of the comment of a sealed archive
_LOCK = ".lock"
_PARTIAL = re.compile(r"\..+\.\d+(-[0-9a-f]{8})?\.(partial|old)")  # of atomic_path, save_model

log = logging.getLogger(__name__)
_said: set[str] = set()  # warnings that were logged before


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces ``path`` once the block has succeeded.

    It is written to disk before it is renamed: neither a killed process nor a power failure leaves
    half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, also among processes on other machines with the same disk.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _sync(partial)
        move(partial, path)
        _sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # errors of write() do not name the file
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def move(source: Path, target: Path) -> None:
    """Rename a file, which may replace another one, or a folder.

    If the file system refuses, copy it, with a warning.
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
    """Log a warning once per process, whatever its values."""
    if message not in _said:
        _said.add(message)
        log.warning(message, *values)


def remove_partial(folder: Path) -> None:
    """Remove the temporary files of killed processes below ``folder``."""
    for path in [*folder.rglob(".*.partial"), *folder.rglob(".*.old")]:
        if not _PARTIAL.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def used_alone(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other processes; create it if it is missing.

    On a file system without locks, continue without one, with a warning.

    Raises:
        UserError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another process is training there") from None
            except OSError as error:  # some NFS, Lustre and FUSE file systems have no locks
                warn_once(
                    "%s: this file system refuses file locks (%s); a second training in the same"
                    " folder is not detected",
                    folder,
                    reason(error),
                )
        yield


def is_used(folder: Path) -> bool:
    """Return whether a process has locked ``folder`` by :func:`used_alone`.

    This takes the lock for an instant, in which a run that starts there is refused.
    """
    path = folder / _LOCK
    if fcntl is None or not path.is_file():
        return False
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not readable, or a file system without locks
        return False
    return False


def expand_home(path: str) -> str:
    """Replace ``~`` or ``~user`` at the beginning of a path by that home folder.

    Raises:
        UserError: There is no such user.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111  Path.expanduser() raises RuntimeError
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no such home folder; ./{path} is a folder of that name")
    return expanded


def os_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error that is, or caused, ``error``."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def reason(error: OSError) -> str:
    """Return why a file could not be read or written, in a few words."""
    if error.errno in NO_SPACE:
        return "no space left on the disk"
    return (error.strerror or str(error) or type(error).__name__).lower()


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to disk."""
    if os.name != "posix":  # other systems cannot open folders
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some network file systems cannot open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (*NO_SPACE, errno.EIO):
            raise  # some file systems refuse to sync folders or read-only files
    finally:
        os.close(descriptor)


def seal(file: IO[bytes]) -> None:
    """Add a checksum of all bytes of a zip archive, as the archive's comment.

    The checksums in the archive itself cover neither its headers nor the space between entries.

    Args:
        file: Open for reading and writing; without a comment, whose length is in the last two
            bytes.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 2)
    file.write(len(_comment(0)).to_bytes(2, "little"))
    comment = _comment(_crc32(file, size))
    file.seek(size)
    file.write(comment)


def is_intact(path: Path) -> bool:
    """Return whether a zip archive is intact: all of it if it is sealed, otherwise its entries.

    Raises:
        Exception: One of many kinds, if it is not an archive or badly damaged.
    """
    with path.open("rb") as file:
        size = max(0, file.seek(0, os.SEEK_END) - len(_comment(0)))
        file.seek(size)
        comment = file.read()
        if comment.startswith(SEAL):
            return comment == _comment(_crc32(file, size))
    with zipfile.ZipFile(path) as archive:  # written without a seal
        return not archive.comment and archive.testzip() is None


def _comment(crc32: int) -> bytes:
    return SEAL + b"%08x" % crc32


def _crc32(file: IO[bytes], size: int) -> int:
    """Checksum of the first ``size`` bytes."""
    file.seek(0)
    total, left = 0, size
    while left > 0 and (chunk := file.read(min(left, 1 << 22))):
        total, left = zlib.crc32(chunk, total), left - len(chunk)
    return total
