"""The quantity that a network predicts, and its relation to x_0.

With x_t = α x_0 + σ ε and SNR = α² / σ²:

================  ==============  ====================  =========================
prediction        target          back to x_0           weight w
================  ==============  ====================  =========================
``epsilon``       ε               (x_t - σ output) / α  SNR
``sample``        x_0             output                1
``v_prediction``  α ε - σ x_0     α x_t - σ output      SNR + 1
``velocity``      ε - x_0         see below             (√SNR + 1)²
================  ==============  ====================  =========================

w relates squared errors: that of the output is w times that of x_0. ``v_prediction`` is defined for
α² + σ² = 1. For ``velocity``, x_0 = (x_t - σ output) / (α + σ), where α + σ = 1 with a flow.

References: Ho et al. 2020, arXiv 2006.11239; Salimans & Ho 2022, arXiv 2202.00512, appendix D; Liu
et al. 2023, arXiv 2209.03003.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor

from iclevr_diffusion.diffusion.schedule import Schedule
from iclevr_diffusion.utils.registry import Registry


class Prediction(ABC):
    """A parametrization of the network's output.

    All images are (B, C, H, W); α and σ are (B, 1, 1, 1).

    Attributes:
        name: The name in configs and saved weights.
        variance_preserving: Whether it is defined for α² + σ² = 1 only.
    """

    name: ClassVar[str]
    variance_preserving: ClassVar[bool] = False

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the training target of the network's output."""

    @abstractmethod
    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Convert an output to an estimate of x_0."""

    @abstractmethod
    def x0_weight(self, snr: Tensor) -> Tensor:
        """Return w: squared error of the output = w · squared error of x_0; shaped as ``snr``."""


PredictionClass = TypeVar("PredictionClass", bound=type[Prediction])

PREDICTIONS: Registry[Prediction] = Registry("prediction")


def register_prediction(prediction: PredictionClass) -> PredictionClass:
    """Register a prediction's class under its ``name``; a decorator.

    Raises:
        ValueError: Another prediction of that name is registered.
    """
    PREDICTIONS.add(prediction.name, prediction())
    return prediction


@register_prediction
class Epsilon(Prediction):
    """The noise."""

    name = "epsilon"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / alpha

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr


@register_prediction
class Sample(Prediction):
    """The clean image."""

    name = "sample"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return output

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr.new_ones(snr.shape)


@register_prediction
class VPrediction(Prediction):
    """v = α ε - σ x_0."""

    name = "v_prediction"
    variance_preserving = True

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * x0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * x_t - sigma * output

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr + 1


@register_prediction
class Velocity(Prediction):
    """The velocity of a straight path from the image to the noise, ε - x_0."""

    name = "velocity"

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - x0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * output) / (alpha + sigma)

    def x0_weight(self, snr: Tensor) -> Tensor:
        return (snr.sqrt() + 1).square()


def find_prediction(name: str) -> Prediction:
    """Return the prediction of a name.

    Raises:
        ValueError: The name is unknown.
    """
    return PREDICTIONS.find(name)


def check_compatible(prediction: Prediction, schedule: Schedule) -> None:
    """Check that a prediction is defined for a schedule.

    Raises:
        ValueError: The prediction needs α² + σ² = 1, which the schedule does not have.
    """
    if prediction.variance_preserving and not schedule.variance_preserving:
        raise ValueError(
            f"prediction {prediction.name} needs a variance-preserving schedule, which"
            f" {type(schedule).__name__} is not; use velocity"
        )
