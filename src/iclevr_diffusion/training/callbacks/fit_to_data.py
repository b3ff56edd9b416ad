"""Hand the training data to the model before the first step."""

from typing import cast

import lightning as L

from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.training.base import TrainedModule


class FitToData(L.Callback):
    """Fits what the model learns from the training frames at once, not by gradients.

    Lightning sets up the data module first, then the callbacks, and restores a checkpoint last.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: object = trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and isinstance(data, DataModule):
            cast(TrainedModule, pl_module).fit_to_data(data)
