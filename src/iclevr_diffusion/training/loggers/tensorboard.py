"""TensorBoard's event files in the run folder."""

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.lightning_internals import purge_tensorboard


class TensorBoard(TensorBoardLogger):
    """TensorBoard's event files."""

    def purge(self, steps: int) -> None:
        """Hide what earlier processes logged of later steps; call it before anything is logged."""
        purge_tensorboard(self, steps)


def tensorboard_logger(folder: Path) -> TensorBoard:
    """TensorBoard's event files in ``folder/tensorboard``.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        return TensorBoard(folder, name=None, version="tensorboard", default_hp_metric=False)
    except ModuleNotFoundError:
        raise UserError(
            "logger=tensorboard needs it: pip install 'iclevr-diffusion[tensorboard]'"
        ) from None
