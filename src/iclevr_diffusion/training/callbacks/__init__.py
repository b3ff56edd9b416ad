"""Callbacks of a training."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints
    from iclevr_diffusion.training.callbacks.ema import EMA
    from iclevr_diffusion.training.callbacks.scoring import Scoring

__all__ = ["EMA", "Checkpoints", "Scoring"]

__getattr__, __dir__ = lazy_attributes(
    __name__, EMA="ema", Checkpoints="checkpoint", Scoring="scoring"
)
