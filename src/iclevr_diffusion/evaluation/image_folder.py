"""Images that someone else generated, one numbered PNG file for each condition of a list."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from iclevr_diffusion.data.iclevr.decode import BadFrameError, checked
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import reason

SIZES = range(16, 513)  # of an image's sides, in pixels


def read_images(folder: Path, lists: Mapping[str, Sequence[LabelSet]]) -> dict[str, Tensor]:
    """Read ``folder/<list>/0.png``, ``1.png``, … in the order of each list's conditions.

    Images are square, and those of one list have one size; the evaluators resize others than
    64×64. Files that are not PNG are ignored.

    Returns:
        For each list float32 images (N, 3, H, W) in [-1, 1].

    Raises:
        UserError: A folder or a number is missing, there are more images than conditions, or an
            image is damaged or has a wrong size.
    """
    # Look for all files first: that takes no time.
    paths = {name: numbered_files(folder / name, len(sets)) for name, sets in lists.items()}
    return {name: _decoded(files) for name, files in paths.items()}


def numbered_files(folder: Path, count: int) -> list[Path]:
    """Return the files ``0.png`` to ``<count - 1>.png`` of a folder, in order of their numbers.

    Raises:
        UserError: Some are missing, or there are others.
    """
    expected = f"expected {count} images, 0.png to {count - 1}.png"
    try:
        files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"]
    except OSError as error:
        raise UserError(f"images: {folder}: {reason(error)}; {expected}") from None
    found: dict[int, Path] = {}
    for path in files:
        if not (path.stem.isascii() and path.stem.isdecimal()):
            raise UserError(f"images: the name of {path} is not a number; {expected}")
        number = int(path.stem)
        if number >= count:
            raise UserError(f"images: {path} is one too many; {expected}")
        if number in found:
            raise UserError(f"images: {path} and {found[number].name} have the same number")
        found[number] = path
    missing = [f"{number}.png" for number in range(count) if number not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"images: {folder}: {missing[0]}{more} missing; {expected}")
    return [found[number] for number in range(count)]


def _decoded(paths: Sequence[Path]) -> Tensor:
    images = [_decode(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise UserError(
                f"images: {path} is {_size(image)} pixels, {paths[0].name} {_size(images[0])}; the"
                " images of a list need one size"
            )
    return to_unit_range(torch.from_numpy(np.stack(images)))


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    """Decode an image to uint8 (3, H, W).

    Raises:
        UserError: It is damaged, not square, too small or too large.
    """

    def decode(file: BinaryIO) -> npt.NDArray[np.uint8]:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1)

    try:
        pixels = checked(path, decode)
    except BadFrameError as error:
        raise UserError(f"images: {path}: {error}") from None
    height, width = pixels.shape[1:]
    if height != width or height not in SIZES:
        raise UserError(
            f"images: {path} is {_size(pixels)} pixels; images must be square, from {SIZES[0]} to"
            f" {SIZES[-1]} pixels wide, best 64x64"
        )
    return pixels


def _size(pixels: npt.NDArray[np.uint8]) -> str:
    height, width = pixels.shape[1:]
    return f"{width}x{height}"
