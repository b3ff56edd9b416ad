"""What the network predicts, what it is trained towards, and how each timestep counts.

Three parametrisations of one thing. With α = √ᾱ_t, σ = √(1 - ᾱ_t) and x_t = α x_0 + σ ε:

================  =====================  ==============================
prediction        target                 back to x_0
================  =====================  ==============================
``epsilon``       ε                      (x_t - σ output) / α
``sample``        x_0                    output
``v_prediction``  α ε - σ x_0            α x_t - σ output
================  =====================  ==============================

(Ho et al. 2020, arXiv 2006.11239; Salimans & Ho 2022, arXiv 2202.00512, appendix D.)
Their squared errors are weighted views of the error of x_0: L_ε = SNR · L_x0 and
L_v = (SNR + 1) · L_x0.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.schedule import NoiseSchedule

MAX_WEIGHT = 5.0  # of an error of x_0 where there is next to no noise; 1 where there is only noise


class Prediction(ABC):
    """One parametrisation. All tensors are (B, C, H, W); alpha_bar is (B, 1, 1, 1)."""

    name: ClassVar[str]

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network should put out."""

    @abstractmethod
    def to_x0(self, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The x_0 that an output stands for."""

    @abstractmethod
    def x0_weight(self, snr: Tensor) -> Tensor:
        """w in: squared error of the output = w · squared error of x_0. Shape of ``snr``."""


class Epsilon(Prediction):
    """The network predicts the noise."""

    name = "epsilon"

    def target(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        return noise

    def to_x0(self, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr


class Sample(Prediction):
    """The network predicts the clean image."""

    name = "sample"

    def target(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        return x0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return output

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr.new_ones(snr.shape)


class VPrediction(Prediction):
    """The network predicts v = α ε - σ x_0."""

    name = "v_prediction"

    def target(self, x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x0

    def to_x0(self, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output

    def x0_weight(self, snr: Tensor) -> Tensor:
        return snr + 1


PREDICTIONS: dict[str, Prediction] = {
    kind.name: kind for kind in (Epsilon(), Sample(), VPrediction())
}


def find_prediction(name: str) -> Prediction:
    """The parametrisation of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {name!r:.60}")
    return PREDICTIONS[name]


class Objective:
    """Mean squared error towards the prediction's own target.

    Args:
        schedule: the noise schedule of training.
        name: ``epsilon``, ``sample`` or ``v_prediction``.
        min_snr_gamma: None weighs every timestep alike in the target's own space. A number γ
            weighs the error of x_0 by min(SNR, γ) under every parametrisation (Hang et al. 2023,
            arXiv 2303.09556, eq. 8): the three then minimise the same loss. 5 is their choice.

        data_std: None, or the standard deviation σ_d of the frames about their mean frame, in
            [-1, 1]: it weighs the error of x_0 by 1 + σ_d² SNR, at most 5, under every
            parametrisation. That is the weight of Karras et al. 2022, arXiv 2206.00364, table 1,
            times σ_d².
        max_weight: bound on that weight, 5 by default; None takes it unbounded and divides it by
            σ_d², which makes it Karras' own: of a network with their preconditioning the loss
            begins at about 1 at every timestep.
        timestep_shift: the noise-to-signal ratio of a training timestep is so many times that of a
            uniform one (the shifted schedule of Hoogeboom et al. 2023, arXiv 2301.11093): below 1
            the training sees less noise, above 1 more. T-1 stays T-1, as drawing begins there.
        sampled_as: the prediction that samplers take the outputs for; None: the trained one.

    Raises:
        ValueError: an unknown prediction, a number that is not above zero, or two kinds of weight.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        name: str = "epsilon",
        min_snr_gamma: float | None = None,
        data_std: float | None = None,
        timestep_shift: float = 1.0,
        max_weight: float | None = MAX_WEIGHT,
        max_noise: float | None = None,
        noise_mean: float | None = None,
        noise_std: float | None = None,
        sampled_as: str | None = None,
    ) -> None:
        for setting, number in (
            ("min_snr_gamma", min_snr_gamma),
            ("data_std", data_std),
            ("timestep_shift", timestep_shift),
            ("max_weight", max_weight),
            ("max_noise", max_noise),
            ("noise_std", noise_std),
        ):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"prediction.{setting} must be above 0, got {number}")
        if min_snr_gamma is not None and data_std is not None:
            raise ValueError("prediction.min_snr_gamma and prediction.data_std contradict")
        if (noise_mean is None) != (noise_std is None):
            raise ValueError("prediction.noise_mean and prediction.noise_std need each other")
        if timestep_shift != 1 and (noise_mean is not None or max_noise is not None):
            raise ValueError(
                "prediction.timestep_shift must be 1 with prediction.noise_mean or max_noise"
            )
        self.schedule = schedule
        self.prediction = find_prediction(name)
        self.sampled_as = self.prediction if sampled_as is None else find_prediction(sampled_as)
        self.min_snr_gamma = min_snr_gamma
        self.data_std = data_std
        self.timestep_shift = timestep_shift
        self.max_weight = max_weight
        self.max_noise = max_noise
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.trained_timesteps = schedule.timesteps  # those from 0 up that are trained at
        if max_noise is not None:
            self.trained_timesteps = int((schedule.noise_to_signal() < max_noise).sum())
            if not self.trained_timesteps:
                raise ValueError(
                    f"prediction.max_noise={max_noise} is below the noise of every timestep"
                )

    def weight(self, timesteps: Tensor) -> Tensor:
        """Weight of each timestep's squared error, float32, (B,), for int64 timesteps (B,)."""
        snr = self.schedule.snr(timesteps)
        if self.min_snr_gamma is not None:
            weight = snr.clamp(max=self.min_snr_gamma)
        elif self.data_std is not None:
            weight = 1 + self.data_std**2 * snr
            if self.max_weight is None:
                weight = weight / self.data_std**2
            else:
                weight = weight.clamp(max=self.max_weight)
        else:
            return snr.new_ones(snr.shape)
        return weight / self.prediction.x0_weight(snr)

    def timesteps(
        self, count: int, generator: torch.Generator | None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Timesteps to train at, int64, (count,), drawn independently."""
        if self.noise_mean is not None:
            return self._log_normal_timesteps(count, generator, device)
        last = self.trained_timesteps
        uniform = torch.randint(last, (count,), generator=generator, device=device)
        if self.timestep_shift == 1:
            return uniform
        ratios = self.schedule.noise_to_signal()
        shifted = torch.searchsorted(ratios, self.timestep_shift * ratios[uniform])
        return torch.where(uniform == last - 1, uniform, shifted.clamp(max=last - 1))

    def _log_normal_timesteps(
        self, count: int, generator: torch.Generator | None, device: torch.device | str
    ) -> Tensor:
        """Timesteps whose noise is nearest to that of a log-normal draw below ``max_noise``."""
        assert self.noise_mean is not None
        assert self.noise_std is not None
        uniform = torch.rand(count, generator=generator, device=device)
        if self.max_noise is not None:
            most = (math.log(self.max_noise) - self.noise_mean) / self.noise_std
            uniform *= 0.5 * (1 + math.erf(most / math.sqrt(2)))
        drawn = self.noise_mean + self.noise_std * torch.special.ndtri(uniform)
        levels = self.schedule.noise_to_signal()[: self.trained_timesteps].log()
        return torch.searchsorted((levels[1:] + levels[:-1]) / 2, drawn)

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Weighted mean squared error, a scalar; output, x0, noise (B, C, H, W), in float32."""
        alpha_bar = self.schedule.alpha_bar(timesteps, x0)
        error = output.to(x0.dtype) - self.prediction.target(x0, noise, alpha_bar)
        return (self.weight(timesteps).to(x0.dtype) * error.square().mean((1, 2, 3))).mean()

    def x0_error(self, output: Tensor, x0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Mean squared error of x_0, a scalar.

        The estimate is clamped to [-1, 1], as in sampling. Unlike the loss, it compares runs of
        different parametrisations.
        """
        alpha_bar = self.schedule.alpha_bar(timesteps, x0)
        estimate = self.prediction.to_x0(output.to(x0.dtype), x_t, alpha_bar).clamp(-1, 1)
        return (estimate - x0).square().mean()
