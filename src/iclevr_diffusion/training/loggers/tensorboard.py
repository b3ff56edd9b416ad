"""TensorBoard's event files in the run folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.lightning_internals import purge_tensorboard


class TensorBoard(TensorBoardLogger):
    """Event files of TensorBoard."""

    def purge(self, steps: int) -> None:
        """Hide the later steps of earlier processes; call this before anything is logged."""
        purge_tensorboard(self, steps)


def check_tensorboard(**settings: Any) -> None:
    """Check that TensorBoard is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise UserError(
            "logger=tensorboard needs tensorboard: pip install 'iclevr-diffusion[tensorboard]'"
        )


def tensorboard_logger(folder: Path) -> TensorBoard:
    """Create a logger that writes event files to ``folder/tensorboard``.

    Raises:
        UserError: tensorboard is not installed.
    """
    check_tensorboard()
    return TensorBoard(folder, name=None, version="tensorboard", default_hp_metric=False)
