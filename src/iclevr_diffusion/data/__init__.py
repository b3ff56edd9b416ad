"""Data: label vocabularies, condition lists, data modules, i-CLEVR's frames and synthetic ones."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.data.adapters import ICLEVRDataModule
    from iclevr_diffusion.data.datamodule import DataModule
    from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
    from iclevr_diffusion.data.types import Batch, Frames

__all__ = ["ICLEVR_LABELS", "Batch", "DataModule", "Frames", "ICLEVRDataModule", "Vocabulary"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    ICLEVR_LABELS="labels",
    Batch="types",
    DataModule="datamodule",
    Frames="types",
    ICLEVRDataModule="adapters",
    Vocabulary="labels",
)
