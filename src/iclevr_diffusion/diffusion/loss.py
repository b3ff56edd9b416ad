"""The training objective: the timesteps to train at, and the weighted squared error.

The squared errors of all predictions are weighted views of the error of x_0, so a weight in terms
of x_0 gives one loss under every :mod:`~.prediction`.
"""

import math

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.prediction import check_compatible, find_prediction
from iclevr_diffusion.diffusion.schedule import Schedule
from iclevr_diffusion.utils.checks import check_positive

LEAST_NORMAL = -6  # beyond it, too little of the distribution is left to sample from
MAX_WEIGHT = 5.0  # of the error of x_0 where there is almost no noise; 1 at pure noise


class Objective:
    """Weighted mean squared error between the output and the prediction's target.

    Args:
        schedule: The noise schedule.
        name: The prediction, such as ``epsilon``; see :mod:`~.prediction`.
        min_snr_gamma: With a number γ, the error of x_0 is weighted by min(SNR, γ), under every
            prediction (Hang et al. 2023, arXiv 2303.09556, eq. 8). The paper recommends 5. None:
            the error of the target has the same weight at all timesteps.
        data_std: The standard deviation σ_d of the images about their mean image, in [-1, 1]. The
            error of x_0 is then weighted by 1 + σ_d² SNR, at most ``max_weight``, under every
            prediction. That is σ_d² times the weight of Karras et al. 2022, arXiv 2206.00364,
            table 1. None: no such weight.
        timestep_shift: Factor on the noise-to-signal ratio of uniform timesteps (the shifted
            schedule of Hoogeboom et al. 2023, arXiv 2301.11093): below 1, training sees less noise.
            T-1 stays T-1, where sampling begins.
        max_weight: Upper bound of the weight by ``data_std``. None: no bound, and the weight is
            divided by σ_d². That is Karras' own weight, with which the loss of a network with
            Karras' preconditioning begins at about 1 at every timestep.
        max_noise: Noise-to-signal ratio; training only samples timesteps below it. None: all.
        noise_mean: With ``noise_std``: timesteps are sampled so that the logarithm of the
            noise-to-signal ratio is normally distributed with this mean. None: uniform timesteps.
        noise_std: The standard deviation of that logarithm.
        sampled_as: The prediction that samplers assume; None: ``name``.

    Raises:
        ValueError: A prediction is unknown or undefined for the schedule, a number is out of range,
            or two arguments cannot be combined.
    """

    def __init__(
        self,
        schedule: Schedule,
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
        for argument, number in (
            ("min_snr_gamma", min_snr_gamma),
            ("data_std", data_std),
            ("timestep_shift", timestep_shift),
            ("max_weight", max_weight),
            ("max_noise", max_noise),
            ("noise_std", noise_std),
        ):
            if number is not None:
                check_positive(argument, number)
        if min_snr_gamma is not None and data_std is not None:
            raise ValueError("min_snr_gamma and data_std cannot both be set")
        if (noise_mean is None) != (noise_std is None):
            raise ValueError("noise_mean and noise_std must be set together")
        if noise_mean is not None and not math.isfinite(noise_mean):
            raise ValueError(f"noise_mean must be finite, got {noise_mean}")
        if timestep_shift != 1 and (noise_mean is not None or max_noise is not None):
            raise ValueError("timestep_shift must be 1 with noise_mean or max_noise")
        self.schedule = schedule
        self.prediction = find_prediction(name)
        self.sampled_as = find_prediction(name if sampled_as is None else sampled_as)
        for prediction in (self.prediction, self.sampled_as):
            check_compatible(prediction, schedule)
        self.min_snr_gamma = min_snr_gamma
        self.data_std = data_std
        self.timestep_shift = timestep_shift
        self.max_weight = max_weight
        self.max_noise = max_noise
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.trained_timesteps = schedule.timesteps  # 0 … trained_timesteps-1 are trained at
        if max_noise is not None:
            self.trained_timesteps = int((schedule.noise_to_signal() < max_noise).sum())
            if not self.trained_timesteps:
                raise ValueError(f"max_noise={max_noise} is below the noise of every timestep")
        if self._largest_normal() < LEAST_NORMAL:
            raise ValueError(
                f"noise_mean must be less than {-LEAST_NORMAL} noise_std above the logarithm of"
                f" max_noise={max_noise}, got {noise_mean}"
            )

    def weight(self, timesteps: Tensor) -> Tensor:
        """Return the weight of each squared error, float32, (B,), for int64 timesteps (B,)."""
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
        """Sample independent timesteps to train at, int64, (count,)."""
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
        """Sample timesteps by a log-normal noise-to-signal ratio, truncated at ``max_noise``."""
        assert self.noise_mean is not None
        assert self.noise_std is not None
        uniform = torch.rand(count, generator=generator, device=device)
        uniform *= 0.5 * (1 + math.erf(self._largest_normal() / math.sqrt(2)))
        on_mps = uniform.device.type == "mps"  # which has no ndtri
        normal = torch.special.ndtri(uniform.cpu() if on_mps else uniform).to(uniform.device)
        wanted = self.noise_mean + self.noise_std * normal
        levels = self.schedule.noise_to_signal()[: self.trained_timesteps].log()
        return torch.searchsorted((levels[1:] + levels[:-1]) / 2, wanted)

    def _largest_normal(self) -> float:
        """Return the bound by ``max_noise`` of the standard normal behind a timestep."""
        if self.max_noise is None or self.noise_mean is None or self.noise_std is None:
            return math.inf
        return (math.log(self.max_noise) - self.noise_mean) / self.noise_std

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the weighted mean squared error, a scalar.

        Args:
            output: The network's output, (B, C, H, W), of any precision.
            x0: Clean images, float32, (B, C, H, W).
            noise: float32, (B, C, H, W).
            timesteps: int64, (B,).
        """
        alpha, sigma = self.schedule.alpha(timesteps, x0), self.schedule.sigma(timesteps, x0)
        error = output.to(x0.dtype) - self.prediction.target(x0, noise, alpha, sigma)
        return (self.weight(timesteps).to(x0.dtype) * error.square().mean((1, 2, 3))).mean()

    def x0_error(self, output: Tensor, x0: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
        """Compute the mean squared error of x_0, a scalar, which compares different predictions.

        The estimate is clamped to [-1, 1], as in sampling.
        """
        alpha, sigma = self.schedule.alpha(timesteps, x0), self.schedule.sigma(timesteps, x0)
        estimate = self.prediction.to_x0(output.to(x0.dtype), x_t, alpha, sigma).clamp(-1, 1)
        return (estimate - x0).square().mean()
