"""Shuffled pages of crops of outer objects; for ``eye.py``."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NAMES, SHAPES
from iclevr_diffusion.data.positions import FIRST, find_positions
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.diffusion.pipeline import refuse_nan
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.rng import image_generators, keyed_generator

REAL = "real"
SHORT = {"c": "cube", "s": "sphere", "y": "cylinder", "u": "unclear"}
KEY, ANSWER_SHEET, IMAGES = "key.json", "answers.txt", "images"

STREAM = "eye"  # of the generated images' random numbers
IMAGE_SIZE = 64
CENTER = 0.1  # an object closer than this to the center of first objects is one of them
CLEARANCE = 0.3  # between the object and every other one, at least, in [-1, 1] units
CROP, ZOOM = 24, 8  # pixels; whole-number enlargement
COLUMNS, ROWS = 5, 4  # of crops on a page
MARGIN = 24  # pixels around a crop, for its number and the ticks


class Crop(NamedTuple):
    """One object to look at.

    Attributes:
        image: uint8, (3, H, W), the whole image.
        position: (x, y) of the object, in [-1, 1].
        key: group, label, and the source of the image.
    """

    image: Tensor
    position: tuple[float, float]
    key: dict[str, Any]


def heights(positions: Tensor) -> Tensor:
    """Return the heights of objects at (…, 2): 8 pixels at row 16 of 64, 22 at row 48."""
    return 0.467 + 0.433 * positions[..., 1]


def clear_objects(labels: Tensor, positions: Tensor) -> list[int]:
    """Return the indices of labels (L,) whose outer object at ``positions`` (L, 2) is visible."""
    present = (labels > 0).nonzero().flatten()
    where, height = positions[present], heights(positions[present])
    apart = ((height[:, None] + height[None]) / 2).clamp(min=CLEARANCE)
    close = torch.cdist(where, where) < apart
    colors = present % len(COLORS)
    good = (
        (close.sum(1) == 1)  # itself
        & ((colors[:, None] == colors).sum(1) == 1)
        & ((where.abs() + height[:, None] / 2).amax(1) <= 1)
        & ((where - torch.tensor(FIRST)).norm(dim=1) > CENTER)
        & where.isfinite().all(1)
        & (labels[present] == 1)
    )
    return present[good].tolist()


def choose(frames: Frames, positions: Tensor, each: int, seed: int) -> list[tuple[int, int]]:
    """Choose frames and labels, ``each`` of every shape, from different sequences.

    Args:
        positions: (N, L, 2), of each object of each frame.

    Raises:
        UserError: there are too few.
    """
    left = Counter(dict.fromkeys(SHAPES, each))
    chosen, used = [], set()
    # One order for all groups, so that their label sets are similar.
    for frame in torch.randperm(len(frames), generator=keyed_generator("eye order", seed)).tolist():
        sequence = int(frames.sequences[frame])
        clear = clear_objects(frames.labels[frame], positions[frame])
        wanted = [label for label in clear if left[shape_of(NAMES[label])] > 0]
        if sequence in used or not wanted:
            continue
        pick = torch.randint(len(wanted), (), generator=keyed_generator("eye pick", seed, frame))
        chosen.append((frame, wanted[pick]))
        used.add(sequence)
        left[shape_of(NAMES[wanted[pick]])] -= 1
    if missing := {shape: count for shape, count in left.items() if count}:
        short = ", ".join(f"{each - count} {shape}s" for shape, count in missing.items())
        raise UserError(
            f"--crops needs {each} of every shape per group, but only {short} are visible"
        )
    return chosen


def shape_of(label: str) -> str:
    return label.split()[1]


def color_of(label: str) -> str:
    return label.split()[0]


def real_crops(frames: Frames, each: int, seed: int) -> list[Crop]:
    """Cut crops from held-out frames."""
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    return [
        crop_of(REAL, frames, frame, label, frames.images[frame], positions[frame])
        for frame, label in choose(frames, positions, each, seed)
    ]


def generated_crops(
    group: str, model: Model | GAN, frames: Frames, each: int, seed: int, layout: str = CLEAR
) -> list[Crop]:
    """Generate images for the label sets of frames, and cut crops from them.

    Raises:
        UserError: the weights have no positions, too few objects are visible, or an image is NaN.
    """
    pipeline = model.pipeline(layout=layout)
    labels = frames.labels.to(pipeline.device)
    generators = image_generators(seed, range(len(frames)), STREAM)
    positions = pipeline.sample_positions(labels, generators)
    assert positions is not None  # checked by check_positions
    positions = positions.cpu()[..., :2]  # without headings
    chosen = choose(frames, positions, each, seed)
    indices = [frame for frame, _ in chosen]
    generators = image_generators(seed, indices, STREAM)  # anew, so that the positions are the same
    images = pipeline(labels[indices], generators)
    refuse_nan(images)
    return [
        crop_of(group, frames, frame, label, image, positions[frame], seed)
        for (frame, label), image in zip(chosen, to_uint8(images), strict=True)
    ]


def check_positions(group: str, model: Model | GAN, layout: str = CLEAR) -> None:
    """Check that weights can be on a sheet, before anything is generated.

    Raises:
        UserError: they have no positions, or generate images of another size than real ones.
    """
    pipeline = model.pipeline()
    one = torch.eye(len(NAMES), device=pipeline.device)[:1]
    if pipeline.sample_positions(one, image_generators(0, [0], STREAM)) is None:
        raise UserError(
            f"--weights={group}: these weights take no positions, so the objects cannot be found;"
            " use weights that were trained with net.positions=true"
        )
    model.pipeline(layout=layout)  # refuses an unknown layout
    if model.image_shape[1] != IMAGE_SIZE:
        raise UserError(
            f"--weights={group}: its images have {model.image_shape[1]} pixels per side, the"
            f" real ones {IMAGE_SIZE}"
        )


def crop_of(
    group: str,
    frames: Frames,
    frame: int,
    label: int,
    image: Tensor,
    positions: Tensor,
    seed: int | None = None,
) -> Crop:
    """Make a crop with its key; with a seed, the image was generated for the frame's labels."""
    x, y = (round(value, 4) for value in positions[label].tolist())
    key = {
        "group": group,
        "label": NAMES[label],
        "labels": ICLEVR_LABELS.decode(frames.labels[frame]),
        "frame": frames.names[frame],
        "position": [x, y],
    }
    return Crop(image, (x, y), key if seed is None else key | {"seed": seed, "index": frame})


def page(crops: Sequence[Crop], first: int) -> Image.Image:
    """Arrange enlarged crops in rows, with their numbers and ticks at the objects' positions."""
    size = CROP * ZOOM
    cell = size + MARGIN
    sheet = Image.new("RGB", (MARGIN + COLUMNS * cell, MARGIN + ROWS * cell), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(16)
    for index, crop in enumerate(crops):
        row, column = divmod(index, COLUMNS)
        left, top = MARGIN + column * cell, MARGIN + row * cell
        pixels, (x, y) = cut(crop.image, crop.position)
        enlarged = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        sheet.paste(enlarged.resize((size, size), Image.Resampling.NEAREST), (left, top))
        x, y = left + x * ZOOM, top + y * ZOOM
        draw.line((x, top - 6, x, top - 2), "black", 2)
        draw.line((left - 6, y, left - 2, y), "black", 2)
        draw.text((left, top - 20), str(first + index), "black", font)
    return sheet


def cut(image: Tensor, position: tuple[float, float]) -> tuple[Tensor, tuple[float, float]]:
    """Cut the square around ``position``, moved into the image, and return where that is in it.

    Args:
        image: (3, H, W).
    """
    x, y = ((value + 1) / 2 * IMAGE_SIZE for value in position)
    left, top = (min(max(round(value - CROP / 2), 0), IMAGE_SIZE - CROP) for value in (x, y))
    return image[:, top : top + CROP, left : left + CROP], (x - left, y - top)


def write_sheet(crops: Sequence[Crop], settings: dict[str, Any], out: Path) -> list[Path]:
    """Write pages, images, key and empty answers in a shuffled order.

    Returns:
        The paths of the pages and of the answers.

    Raises:
        UserError: the folder is not empty.
    """
    refuse_full(out)
    order = torch.randperm(len(crops), generator=keyed_generator("eye pages", settings["seed"]))
    shuffled = [crops[index] for index in order.tolist()]
    numbers = range(1, len(crops) + 1)
    for number, crop in zip(numbers, shuffled, strict=True):
        image = Image.fromarray(crop.image.permute(1, 2, 0).numpy())
        save_image(image, image_path(out, number))
    key = {str(number): crop.key for number, crop in zip(numbers, shuffled, strict=True)}
    write_text(out / KEY, json.dumps(settings | {"crops": key}, indent=1) + "\n")
    choices = ", ".join(f"{answer} ({short})" for short, answer in SHORT.items())
    lines = [f"# One answer per line, for the object at the ticks: {choices}."]
    lines += [f"{number} ?" for number in numbers]
    write_text(out / ANSWER_SHEET, "\n".join(lines) + "\n")
    many = COLUMNS * ROWS
    return [
        save_image(
            page(shuffled[start : start + many], start + 1),
            out / f"page_{start // many + 1:02d}.png",
        )
        for start in range(0, len(shuffled), many)
    ] + [out / ANSWER_SHEET]


def refuse_full(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder for the sheet")


def image_path(out: Path, number: int) -> Path:
    return out / IMAGES / f"{number:03d}.png"
