"""The images of each line, small enough to travel inside a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from iclevr_diffusion.data.iclevr.decode import BadFrameError, checked
from iclevr_diffusion.reporting.groups import Line
from iclevr_diffusion.reporting.run_files import one_line
from iclevr_diffusion.reporting.runs import Run

LARGEST = (1320, 1800)  # pixels of width and height
MOST_BYTES = 8_000_000  # of all images of a page
# Quality of WebP, and the size: the first at which an image takes no more than its share. A grid
# of 32 good images takes 75 kB at the first; noise takes ten times that.
FORMS = ((82, 1.0), (60, 1.0), (60, 0.5), (30, 0.5), (30, 0.25))
TITLES = {
    "grid_test": "test",
    "grid_new_test": "new_test",
    "strip": "denoising: x_t, and under it the estimate of x₀",
}


@dataclass(frozen=True)
class EmbeddedImage:
    """An image as a data URI, with its size in pixels."""

    title: str
    source: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """The images of one line, all of one run of it."""

    label: str
    images: list[EmbeddedImage]


def galleries(lines: Sequence[Line]) -> list[Gallery]:
    """Of each line the images of its first run that has some; damaged ones are noted there."""
    share = MOST_BYTES // max(1, len(lines) * len(TITLES))
    found = []
    for line in lines:
        for run in line.counted or line.runs:
            images = _embedded(run, share)
            if images:
                found.append(Gallery(line.label, images))
                break
    return found


def _embedded(run: Run, most_bytes: int) -> list[EmbeddedImage]:
    images = []
    for name, path in run.images.items():
        source = one_line(path.relative_to(run.folder))
        try:
            uri, width, height = embedded(path, most_bytes)
        except BadFrameError as error:
            run.problems.append(f"{source}: {error}")
            continue
        seed = f"seed {run.seed}, " if run.seed else ""
        images.append(EmbeddedImage(TITLES[name], seed + source, uri, width, height))
    return images


def embedded(path: Path, most_bytes: int) -> tuple[str, int, int]:
    """An image as a data URI, drawn anew as WebP, and the width and height to show it at.

    Raises:
        BadFrameError: the file is no intact image.
    """

    def convert(file: BinaryIO) -> tuple[str, int, int]:
        with Image.open(file, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
        image.thumbnail(LARGEST, Image.Resampling.LANCZOS)
        for form in FORMS:
            content = _webp(image, *form)
            if len(content) <= most_bytes:
                break
        encoded = base64.b64encode(content).decode("ascii")
        return f"data:image/webp;base64,{encoded}", image.width, image.height

    return checked(path, convert)


def _webp(image: Image.Image, quality: int, scale: float) -> bytes:
    target = io.BytesIO()
    size = [max(1, round(side * scale)) for side in image.size]
    image.resize((size[0], size[1])).save(target, "WEBP", quality=quality)
    return target.getvalue()
