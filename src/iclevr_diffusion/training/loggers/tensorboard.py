"""TensorBoard's event files in the run folder."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from iclevr_diffusion.training.loggers.packages import check_installed
from iclevr_diffusion.utils.lightning_internals import purge_tensorboard


class TensorBoard(TensorBoardLogger):
    """Event files of TensorBoard."""

    def purge(self, steps: int) -> None:
        """Hide the later steps of earlier processes; call this before anything is logged."""
        purge_tensorboard(self, steps)


def tensorboard_logger(folder: Path) -> TensorBoard:
    """Create a logger that writes event files to ``folder/tensorboard``.

    Raises:
        UserError: tensorboard is not installed.
    """
    check_installed("tensorboard")
    return TensorBoard(folder, name=None, version="tensorboard", default_hp_metric=False)
