"""The images of each group of runs, embedded into the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from iclevr_diffusion.data.iclevr.decode import BadFrameError, checked
from iclevr_diffusion.reporting.groups import RunGroup
from iclevr_diffusion.reporting.runs import Run
from iclevr_diffusion.utils.text import one_line

LARGEST = (1320, 1800)  # width and height in pixels
QUALITY = 80  # of WebP; a grid of 32 images takes 75 kB
TITLES = {"strip": "denoising: x_t, and under it the estimate of x₀"}


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
    """The images of one group, all from one of its runs."""

    label: str
    images: list[EmbeddedImage]


def galleries(groups: Sequence[RunGroup]) -> list[Gallery]:
    """Embed the images of the first run of each group that has any.

    Damaged images are added to the run's problems.
    """
    found = []
    for group in groups:
        for run in group.counted or group.runs:
            images = _images(run)
            if images:
                found.append(Gallery(group.label, images))
                break
    return found


def _images(run: Run) -> list[EmbeddedImage]:
    images = []
    for name, path in run.images.items():
        source = one_line(path.relative_to(run.folder))
        try:
            uri, width, height = embedded(path)
        except BadFrameError as error:
            run.problems.append(f"{source}: {error}")
            continue
        seed = f"seed {run.seed}, " if run.seed else ""
        images.append(EmbeddedImage(TITLES.get(name, name), seed + source, uri, width, height))
    return images


def embedded(path: Path) -> tuple[str, int, int]:
    """Encode an image as WebP in a data URI, and return its width and height.

    Raises:
        BadFrameError: The file is not an intact image.
    """

    def convert(file: BinaryIO) -> tuple[str, int, int]:
        with Image.open(file, formats=("PNG",)) as opened:
            image = opened.convert("RGB")
        image.thumbnail(LARGEST, Image.Resampling.LANCZOS)
        content = io.BytesIO()
        image.save(content, "WEBP", quality=QUALITY)
        encoded = base64.b64encode(content.getvalue()).decode("ascii")
        return f"data:image/webp;base64,{encoded}", image.width, image.height

    return checked(path, convert)
