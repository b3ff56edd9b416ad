"""Decoding of image files into uint8 arrays, in parallel, with a report of damaged files."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

MAX_SIDE = 4096
MAX_BYTES = 4 * MAX_SIDE**2  # size of such an image without compression
EMPTY = "empty file"
NO_IMAGE = "not a PNG or JPEG image"
DAMAGED = "damaged or truncated image"
TOO_LARGE = f"image larger than {MAX_SIDE}x{MAX_SIDE} pixels"
TOO_LONG = f"file larger than {MAX_BYTES // 1_000_000} MB"
BAD_MODE = "image that is not 8-bit color or gray"

_FORMATS = ("PNG", "JPEG")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")
# Others have 16 or 32 bits per channel, which convert("RGB") would clip.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")

T = TypeVar("T")

log = logging.getLogger(__name__)


class BadFrameError(Exception):
    """A file that is not a usable frame; the message is one of the kinds above."""


def decode_frame(path: Path, image_size: int) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 (3, H, W), H = W = image_size.

    An image of that size is returned unchanged. Others are resized, without regard to their aspect
    ratio, by PIL's bilinear filter, whose width grows with the reduction: no aliasing, and no
    ringing at edges as with cubic filters. torchvision's ``Resize`` does the same. An alpha channel
    is dropped; in the course's files it is 255 everywhere.

    Raises:
        BadFrameError: The file is not an intact PNG or JPEG image of at most 4096x4096 pixels.
    """

    def decode(file: BinaryIO) -> npt.NDArray[np.uint8]:
        with Image.open(file, formats=_FORMATS) as image:
            rgb = image.convert("RGB")
        if rgb.size != (image_size, image_size):
            rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)

    return checked(path, decode)


def decode_all(
    paths: Sequence[Path], image_size: int
) -> tuple[npt.NDArray[np.uint8], dict[str, str]]:
    """Decode all files to uint8 (N, 3, H, W); return these and the problems, name → kind.

    The images are complete only if there are no problems.
    """
    log.info("reading %d frames; later starts take them from the cache", len(paths))
    images = np.zeros((len(paths), 3, image_size, image_size), dtype=np.uint8)

    def fill(index: int) -> None:
        images[index] = decode_frame(paths[index], image_size)

    return images, _bad_frames(paths, fill)


def find_damaged(paths: Sequence[Path]) -> dict[str, str]:
    """Find damaged files by headers and checksums; return the problems, name → kind.

    Much faster than decoding, and finds nearly everything that decoding finds.
    """
    return _bad_frames(paths, lambda index: checked(paths[index], lambda file: None))


def _bad_frames(paths: Sequence[Path], work: Callable[[int], None]) -> dict[str, str]:
    """Call ``work(index)`` for every file, and collect the problems: name → kind."""

    def attempt(index: int) -> str | None:
        try:
            work(index)
        except BadFrameError as error:
            return str(error)
        return None

    # Threads are enough: PIL releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        kinds = list(pool.map(attempt, range(len(paths))))
    return {path.name: kind for path, kind in zip(paths, kinds, strict=True) if kind is not None}


def checked(path: Path, use: Callable[[BinaryIO], T]) -> T:
    """Call ``use(file)`` if header and checksums are right; raise BadFrameError if not."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise BadFrameError(TOO_LONG)
            try:
                _inspect(file)
                file.seek(0)
                return use(file)
            except UnidentifiedImageError:
                raise BadFrameError(_kind_of_unidentified(file)) from None
    except BadFrameError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadFrameError(TOO_LARGE) from None
    except PermissionError:
        raise BadFrameError("no permission to read the file") from None
    except Exception as error:
        # PIL raises OSError, SyntaxError, ValueError, zlib.error and more for broken files.
        raise BadFrameError(DAMAGED) from error


def _inspect(file: BinaryIO) -> None:
    with Image.open(file, formats=_FORMATS) as image:  # reads the header only
        if max(image.size) > MAX_SIDE:
            raise BadFrameError(TOO_LARGE)
        if image.mode not in _MODES:
            raise BadFrameError(BAD_MODE)
        image.verify()  # decoding alone accepts a PNG without its last bytes


def _kind_of_unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(4)
    if not start:
        return EMPTY
    return DAMAGED if start.startswith(_MAGIC) else NO_IMAGE
