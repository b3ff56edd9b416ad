"""Which source of frames a config asks for."""

from pathlib import Path

from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Source


def choose_source(
    root: str | None, image_size: int, cache: str | Path, sequences: int, seed: int
) -> Source:
    """The i-CLEVR package in ``root``, or without one, synthetic frames.

    Args:
        root: the package's folder; None for synthetic frames.
        image_size: height and width of the frames, in pixels.
        cache: the folder to keep the frames in.
        sequences: how many sequences of three synthetic frames; unused with ``root``.
        seed: of the synthetic frames; unused with ``root``.

    Raises:
        UserError: an argument is out of range. The files are checked in ``prepare()``.
    """
    if root is None:
        return Synthetic(sequences, seed, image_size, cache)
    return ICLEVR(root, image_size, cache)
