"""Sheets of images that were sampled from earlier weights, with their labels."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NUM_LABELS
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.data.unclear.targets import with_colors
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json
from iclevr_diffusion.utils.text import one_line


def read_unclear_images(folder: Path) -> Frames:
    """Read images sampled from earlier weights, as ``benchmarks/unclear_images.py`` writes them.

    The folder has pairs of a lossless ``NAME.webp``, with 32 images of 64×64 per row, and a
    ``NAME.json`` with an entry per image: the requested labels (``labels``), those that no person
    would call clear (``unclear``), and those of which that is unknown (``unknown``).

    Raises:
        UserError: The folder has no such pair, or the files of one do not match.
    """
    sheets = sorted(folder.glob("*.webp"))
    if not sheets:
        raise UserError(f"data.unclear.images={folder}: no .webp file there")
    images, labels, names = [], [], []
    for sheet in sheets:
        entries = read_json(sheet.with_suffix(".json"))
        try:
            with Image.open(sheet) as opened:
                pixels = torch.from_numpy(np.array(opened.convert("RGB")))
            tiles = pixels.unflatten(0, (-1, 64)).unflatten(2, (-1, 64)).permute(0, 2, 4, 1, 3)
            tiles = tiles.flatten(0, 1)[: len(entries)]
            if len(tiles) != len(entries):
                raise ValueError(f"{len(tiles)} images for {len(entries)} entries")
            images.append(tiles)
            labels += [_target(entry) for entry in entries]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserError) as error:
            raise UserError(f"{sheet}: {one_line(error, 160)}") from error
        names += [f"{sheet.stem}_{number:04d}" for number in range(len(entries))]
    return Frames(torch.cat(images), torch.stack(labels), torch.arange(len(names)), names)


def write_unclear_images(
    folder: Path, name: str, images: Tensor, entries: list[dict[str, list[str]]]
) -> None:
    """Write images, uint8 (N, 3, 64, 64), for :func:`read_unclear_images`."""
    columns = 32
    tiles = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -len(images) % columns))
    sheet = tiles.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.numpy()).save(folder / f"{name}.webp", lossless=True, method=6)
    text = "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _target(entry: dict[str, list[str]]) -> Tensor:
    """Return the labels (L + 8,) of one entry."""
    target = with_colors(ICLEVR_LABELS.encode(entry["labels"])[None])[0]
    for key, clear in (("unclear", 0.0), ("unknown", -1.0)):
        for name in entry[key]:
            label = ICLEVR_LABELS.index[name]
            target[label] = clear
            color = NUM_LABELS + label % len(COLORS)
            if key == "unclear":
                target[color] += 1
            elif target[color] == 0:
                target[color] = -1  # unless another object of this color is known to be unclear
    return target
