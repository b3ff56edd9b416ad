"""Grids of images with captions, and denoising strips."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.utils.files import atomic_path
from iclevr_diffusion.utils.pixels import to_arrays

if TYPE_CHECKING:  # matplotlib takes long to import, and most images need none
    from matplotlib.figure import Figure


INK, GOOD, BAD = (40, 40, 40), (0, 110, 60), (200, 0, 30)
LINE = 13  # height of a line of text in pixels
GAP = 2  # pixels between images
MOST_LINES = 8  # in a caption
MILLISECONDS, REST = 120, 2500  # for a frame of an animation, and for its last one
SHORTEST = 2000  # milliseconds until the last frame
LEGEND = "Framed: not an exact match. Red: - is missing, + was not requested."

Caption = Sequence[tuple[str, tuple[int, int, int]]]  # lines and their colors


def grid(
    images: Tensor,
    columns: int = 8,
    captions: Sequence[Caption] = (),
    title: Sequence[str] = (),
    framed: Sequence[bool] = (),
    zoom: int = 2,
) -> Image.Image:
    """Arrange N images in rows.

    Args:
        images: (N, 3, H, W), uint8, or float in [-1, 1].
        columns: Images per row.
        captions: The lines of text under each image; may be empty.
        title: Lines of text above the grid.
        framed: Which images have a red frame.
        zoom: Integer factor of enlargement, without smoothing; larger if the captions need it.
    """
    widest = max((_FONT.getlength(line) + 4 for lines in captions for line, _ in lines), default=0)
    zoom = max(zoom, math.ceil(widest / images.shape[-1]))
    size = images.shape[-1] * zoom
    pixels = to_arrays(images).repeat(zoom, axis=1).repeat(zoom, axis=2)
    lines = max(map(len, captions), default=0)
    cell = size + GAP, size + GAP + (LINE * lines + 2 if lines else 0)
    columns = max(1, min(columns, len(pixels)))
    top = LINE * len(title) + 4 if title else 0
    width = max([GAP + columns * cell[0], *(int(_FONT.getlength(line)) + 8 for line in title)])
    sheet = Image.new("RGB", (width, top + GAP + -(-len(pixels) // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title):
        draw.text((4, 2 + LINE * number), line, fill=INK, font=_FONT)
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        x, y = GAP + column * cell[0], top + GAP + row * cell[1]
        sheet.paste(Image.fromarray(image), (x, y))
        if index < len(framed) and framed[index]:
            draw.rectangle((x, y, x + size - 1, y + size - 1), outline=BAD, width=2)
        for number, (line, color) in enumerate(captions[index] if captions else ()):
            draw.text((x + 2, y + size + 2 + LINE * number), line, fill=color, font=_FONT)
    return sheet


_FONT = ImageFont.load_default()


def caption(requested: Sequence[str], shown: Sequence[str] | None = None) -> Caption:
    """Return the lines under an image.

    Args:
        requested: The labels.
        shown: The objects that an evaluator sees; None if the image was not classified.
    """
    if shown is None:
        return [(name, INK) for name in requested]
    correct = [(name, GOOD) for name in requested if name in shown]
    missing = [(f"- {name}", BAD) for name in requested if name not in shown]
    extra = [(f"+ {name}", BAD) for name in shown if name not in requested]
    lines = correct + missing + extra
    rest = len(lines) - MOST_LINES
    return lines if rest <= 0 else [*lines[:MOST_LINES], (f"and {rest} more", BAD)]


class Strip:
    """An ``on_step`` callback that keeps some of the denoising steps, to show them side by side.

    Args:
        steps: Sampling steps.
        frames: How many steps to keep, evenly spaced, including the last.
        images: How many images to keep, from the first batch.
    """

    def __init__(self, steps: int, frames: int = 10, images: int = 4) -> None:
        frames = min(frames, steps)
        self._images = images
        self._wanted = {round((k + 1) * steps / frames) - 1 for k in range(frames)}
        self._kept: list[Step] = []

    def __call__(self, step: Step) -> None:
        if step.number in self._wanted and step.rows.start == 0:
            kept = slice(self._images)
            self._kept.append(step._replace(x_t=step.x_t[kept], x0=step.x0[kept]))

    def image(self, title: Sequence[str] = (), zoom: int = 2) -> Image.Image:
        """Return two rows for each image: x_t, and under it the estimate of x_0."""
        x_t = torch.stack([step.x_t for step in self._kept], dim=1)
        x0 = torch.stack([step.x0 for step in self._kept], dim=1)
        rows = torch.stack([x_t, x0], dim=1)  # (B, 2, frames, C, H, W)
        return grid(rows.flatten(0, 2), columns=len(self._kept), title=title, zoom=zoom)

    def animation(self, zoom: int = 2) -> list[Image.Image]:
        """Return an image for each kept step: a row of x_t, and under it the estimates of x_0."""
        return [
            grid(torch.cat([step.x_t, step.x0]), columns=len(step.x0), zoom=zoom)
            for step in self._kept
        ]


def write_animation(
    frames: Sequence[Image.Image], file: Path | IO[bytes], format: str = "png"
) -> None:
    """Write an animation that repeats, and rests at its last frame.

    Args:
        frames: Images of one size; in a GIF, each is reduced to 256 colors.
        file: A path or an open file.
        format: ``png`` (APNG) or ``gif``.
    """
    if format == "gif":
        frames = [frame.quantize(256) for frame in frames]
    first, *others = frames
    milliseconds = max(MILLISECONDS, SHORTEST // max(1, len(others)))
    first.save(
        file,
        format=format,
        save_all=True,
        append_images=others,
        duration=[milliseconds] * len(others) + [REST],
        loop=0,
    )


def save_animation(frames: Sequence[Image.Image], path: Path) -> Path:
    """Write an animated PNG atomically."""
    with atomic_path(path) as partial:
        write_animation(frames, partial)
    return path


def save_image(image: "Image.Image | Figure", path: Path) -> Path:
    """Write a PNG atomically."""
    write: Callable[..., object] = image.save if isinstance(image, Image.Image) else image.savefig
    with atomic_path(path) as partial, warnings.catch_warnings():
        # The font may lack characters of a path in the title.
        warnings.filterwarnings("ignore", r"Glyph \d+")
        write(partial, format="png")
    return path
