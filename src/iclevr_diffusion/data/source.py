"""Data modules and frame sources, from the settings in ``conf/data``."""

from pathlib import Path

from iclevr_diffusion.data.adapters import ICLEVRDataModule
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData, UnclearSettings
from iclevr_diffusion.data.holdout import Holdout
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.utils.errors import UserError

SOURCES = ("auto", "iclevr", "synthetic")
CACHE = "outputs/cache"
EVALUATOR_SIZE = 64  # H = W of the evaluator's images


def choose_source(
    root: Path | str | None, image_size: int, cache: Path | str, sequences: int, seed: int
) -> Source:
    """Return the i-CLEVR package in ``root``, or without one, synthetic frames.

    Args:
        root: The package's folder; None for synthetic frames.
        image_size: Height and width of the frames, in pixels.
        cache: The folder to keep the frames in.
        sequences: The number of sequences of three synthetic frames; unused with ``root``.
        seed: The seed of the synthetic frames; unused with ``root``.

    Raises:
        UserError: An argument is out of range. The files are checked in ``prepare_data()``.
    """
    if root is None:
        return Synthetic(sequences, seed, image_size, cache)
    return ICLEVR(str(root), image_size, cache)


def make_datamodule(
    source: str = "auto",
    root: Path | str | None = None,
    sequences: int = 6000,
    seed: int = 0,
    image_size: int = 64,
    batch_size: int = 64,
    val_fraction: float = 0.02,
    device_resident: bool | str = "auto",
    crop_size: int | None = None,
    crop_near_objects: float = 0.5,
    holdout: Holdout | None = None,
    cache: Path | str = CACHE,
) -> ICLEVRDataModule:
    """Build the data module of the course's frames, or of synthetic ones.

    Args:
        source: ``iclevr``, ``synthetic``, or ``auto`` for the first where ``root`` is given.
        root: See :func:`choose_source`; so are ``sequences``, ``seed``, ``image_size``, ``cache``.
        batch_size: See :class:`~.adapters.ICLEVRDataModule`; so are ``val_fraction``,
            ``device_resident`` and ``holdout``.
        crop_size: Trains on square crops of so many pixels; None for whole frames.
        crop_near_objects: See :class:`~.crops.Crops`.

    Raises:
        UserError: ``root`` is missing, or contradicts ``source``.
        ValueError: An argument is out of range.
    """
    if source not in SOURCES:
        raise ValueError(f"source must be auto, iclevr or synthetic, got {source!r}")
    if source == "iclevr" and root is None:
        raise UserError(
            "data=iclevr needs data.root=…, the folder with iclevr/*.png, train.json, test.json"
            " and new_test.json; without the course's data use data=synthetic"
        )
    if source == "synthetic" and root is not None:
        raise UserError("data=synthetic takes no data.root; leave one of the two out")
    return ICLEVRDataModule(
        choose_source(root, image_size, cache, sequences, seed),
        batch_size=batch_size,
        val_fraction=val_fraction,
        device_resident=device_resident,
        crops=None if crop_size is None else Crops(crop_size, crop_near_objects),
        holdout=holdout,
    )


def make_evaluator_datamodule(
    root: Path | str | None = None,
    sequences: int = 6000,
    batch_size: int = 64,
    unclear: UnclearSettings | None = None,
    train_on: str = "auto",
    with_unclear: bool = True,
    cache: Path | str = CACHE,
    seed: int = 0,
) -> EvaluatorData:
    """Build the data module for training an evaluator.

    It takes the arguments of :class:`~.evaluator_datamodule.EvaluatorData`, and these:

    Args:
        root: The folder of the course's frames; None for none.
        train_on: ``both``, ``real``, ``synthetic``, or ``auto`` for the first where ``root`` is
            given, else the last.
        with_unclear: Whether ``unclear`` counts.
        cache: The folder to keep the frames in.

    Raises:
        ValueError: A setting is out of range, or there are no real frames to train on.
    """
    if train_on == "auto":
        train_on = "synthetic" if root is None else "both"
    real = None if root is None else ICLEVR(str(root), EVALUATOR_SIZE, cache)
    settings = unclear if with_unclear else None
    return EvaluatorData(real, train_on, sequences, batch_size, seed, settings)
