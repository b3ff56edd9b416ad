"""Training: LightningModules, optimizers, callbacks, loggers, resume, several processes."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.training.base import TrainedModule
    from iclevr_diffusion.training.diffusion import DiffusionModule
    from iclevr_diffusion.training.evaluator import EvaluatorModule
    from iclevr_diffusion.training.gan import GANModule
    from iclevr_diffusion.training.optimizer import OptimizerSettings

__all__ = [
    "DiffusionModule",
    "EvaluatorModule",
    "GANModule",
    "OptimizerSettings",
    "TrainedModule",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    DiffusionModule="diffusion",
    EvaluatorModule="evaluator",
    GANModule="gan",
    OptimizerSettings="optimizer",
    TrainedModule="base",
)
