"""Images in the loggers that can show them."""

from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import numpy as np
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image


@runtime_checkable
class ShowsImages(Protocol):
    """A logger with the method for images that Lightning's W&B logger has."""

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images under a name."""


def show_image(logger: Logger, key: str, image: Image.Image, step: int) -> None:
    """Log an image under a name such as ``sample/grid``, if the logger can show images.

    A logger of yours shows images if it has a method ``log_image(key, images, step)``.
    """
    if isinstance(logger, ShowsImages):
        logger.log_image(key, [image], step)
    else:
        _show(logger, key, image, step)


@singledispatch
def _show(logger: Logger, key: str, image: Image.Image, step: int) -> None:
    """Log an image to one of Lightning's loggers, which share no method for images."""


@_show.register
def _(logger: TensorBoardLogger, key: str, image: Image.Image, step: int) -> None:
    logger.experiment.add_image(key, np.asarray(image), step, dataformats="HWC")


@_show.register
def _(logger: MLFlowLogger, key: str, image: Image.Image, step: int) -> None:
    logger.experiment.log_image(logger.run_id, image, key=key, step=step)


@_show.register
def _(logger: CometLogger, key: str, image: Image.Image, step: int) -> None:
    logger.experiment.log_image(image, name=key, step=step)
