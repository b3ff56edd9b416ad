"""A source of frames as a data module, and a data module as a source."""

from typing import Any

from torch import Tensor

from iclevr_diffusion.data.conditions import CHOOSE_BY, packaged_conditions
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.holdout import Holdout
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.data.types import Frames, Source


class ICLEVRDataModule(DataModule):
    """i-CLEVR's frames, real or synthetic.

    Args:
        source: The frames.
        batch_size, val_fraction, device_resident: As :class:`DataModule`.
        crops: Settings of training crops; None to train on whole frames.
        holdout: As :class:`DataModule`.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 64,
        val_fraction: float = 0.02,
        device_resident: str | bool = "auto",
        crops: Crops | None = None,
        holdout: Holdout | None = None,
    ) -> None:
        super().__init__(batch_size, val_fraction, device_resident, holdout)
        self.source = source
        self.crops = crops

    @property
    def image_size(self) -> int:  # type: ignore[override]
        return self.source.image_size

    def prepare_data(self) -> None:
        """Check the data and fill its cache."""
        self.source.prepare_data()

    def load_frames(self) -> Frames:
        return self.source.load_frames()

    def find_poses(self, frames: Frames, positions: Tensor) -> Tensor:
        return self.source.find_poses(frames, positions)

    def sequences(self) -> Tensor:
        return self.source.sequences()

    def frame_labels(self) -> Tensor:
        return self.source.frame_labels()

    def conditions(self) -> dict[str, list[LabelSet]]:
        """Return the test lists of the source, and the validation list in this package."""
        return self.source.conditions() | {CHOOSE_BY: packaged_conditions(CHOOSE_BY)}

    def description(self) -> dict[str, Any]:
        return self.source.description()

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"val_fraction": self.val_fraction}


def as_source(datamodule: DataModule) -> Source:
    """Return the frames of a data module, with the test lists alone if they are i-CLEVR's."""
    return datamodule.source if isinstance(datamodule, ICLEVRDataModule) else datamodule
