"""The pictures of each line, small enough to travel inside a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from iclevr_diffusion.comparison.files import one_line
from iclevr_diffusion.comparison.lines import Line
from iclevr_diffusion.comparison.runs import Run
from iclevr_diffusion.data.decode import BadFrameError, checked

LARGEST = (1320, 1800)  # pixels of width and height
MOST_BYTES = 8_000_000  # of all pictures of a page
# Quality of WebP, and the size: the first at which a picture takes no more than its share. A grid
# of 32 good pictures takes 75 kB at the first; noise takes ten times that.
FORMS = ((82, 1.0), (60, 1.0), (60, 0.5), (30, 0.5), (30, 0.25))
TITLES = {
    "grid_test": "test",
    "grid_new_test": "new_test",
    "strip": "denoising: x_t, and under it the estimate of x₀",
}


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its size in pixels."""

    title: str
    source: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """The pictures of one line, all of one run of it."""

    label: str
    pictures: list[Picture]


def galleries(lines: Sequence[Line]) -> list[Gallery]:
    """Of each line the pictures of its first run that has some; damaged ones are noted there."""
    share = MOST_BYTES // max(1, len(lines) * len(TITLES))
    found = []
    for line in lines:
        for run in line.counted or line.runs:
            pictures = _pictures(run, share)
            if pictures:
                found.append(Gallery(line.label, pictures))
                break
    return found


def _pictures(run: Run, most_bytes: int) -> list[Picture]:
    pictures = []
    for name, path in run.pictures.items():
        source = one_line(path.relative_to(run.folder))
        try:
            uri, width, height = embedded(path, most_bytes)
        except BadFrameError as error:
            run.problems.append(f"{source}: {error}")
            continue
        seed = f"seed {run.seed}, " if run.seed else ""
        pictures.append(Picture(TITLES[name], seed + source, uri, width, height))
    return pictures


def embedded(path: Path, most_bytes: int) -> tuple[str, int, int]:
    """A picture as a data URI, drawn anew as WebP, and the width and height to show it at.

    Raises:
        BadFrameError: the file is no intact picture.
    """

    def convert(file: BinaryIO) -> tuple[str, int, int]:
        with Image.open(file, formats=("PNG",)) as image:
            picture = image.convert("RGB")
        picture.thumbnail(LARGEST, Image.Resampling.LANCZOS)
        for form in FORMS:
            content = _webp(picture, *form)
            if len(content) <= most_bytes:
                break
        encoded = base64.b64encode(content).decode("ascii")
        return f"data:image/webp;base64,{encoded}", picture.width, picture.height

    return checked(path, convert)


def _webp(picture: Image.Image, quality: int, scale: float) -> bytes:
    target = io.BytesIO()
    size = [max(1, round(side * scale)) for side in picture.size]
    picture.resize((size[0], size[1])).save(target, "WEBP", quality=quality)
    return target.getvalue()
