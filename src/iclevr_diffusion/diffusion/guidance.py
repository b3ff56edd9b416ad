"""From a network's output to the clean picture, with classifier-free guidance."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.objective import Prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Denoiser:
    """Estimates x_0 from x_t and the labels.

    With a scale w other than 1 it extrapolates from the unconditional estimate (all labels zero):
    x̂_0 = u + w (c - u) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, with w here 1 + w there), both
    from one batched call. The three parametrisations are affine in x_0 at a given x_t, so this is
    the same as guiding ε or v.

    Args:
        net: ``net(x_t, timesteps, labels)``: x_t (B, C, H, W), timesteps int64 (B,), labels
            float32 (B, L); puts out (B, C, H, W).
        schedule: the schedule that the network was trained with.
        prediction: what the network puts out.
        guidance_scale: w; 1 means none, and one call of half the size. It needs a network trained
            with dropped labels.
        min_noise: noise-to-signal ratio below which nothing is guided, and each step is one call
            (Kynkäänniemi et al. 2024, arXiv 2404.07724); 0 guides every step.

    Raises:
        ValueError: the scale or the ratio is negative, infinite or NaN.
    """

    def __init__(
        self,
        net: Network,
        schedule: NoiseSchedule,
        prediction: Prediction,
        guidance_scale: float = 1.0,
        min_noise: float = 0.0,
    ) -> None:
        if not 0 <= guidance_scale < math.inf:
            raise ValueError(f"guidance.scale must be 0 or more, got {guidance_scale}")
        if not 0 <= min_noise < math.inf:
            raise ValueError(f"guidance.min_noise must be 0 or more, got {min_noise}")
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.guidance_scale = guidance_scale
        self.min_noise = min_noise

    def is_guided(self, timestep: int) -> bool:
        """Whether a step at that timestep is guided, and so costs two calls."""
        if self.guidance_scale == 1:
            return False
        return self.min_noise == 0 or bool(
            self.schedule.noise_to_signal()[timestep] >= self.min_noise
        )

    def __call__(self, x_t: Tensor, timestep: int, labels: Tensor) -> Tensor:
        """x̂_0 clamped to [-1, 1], float32, (B, C, H, W); labels as :meth:`placed` gives them."""
        if not self.is_guided(timestep):
            return self._estimate(x_t, timestep, labels).clamp(-1, 1)
        both = self._estimate(
            torch.cat([x_t, x_t]), timestep, torch.cat([labels, torch.zeros_like(labels)])
        )
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.guidance_scale).clamp(-1, 1)

    def placed(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """What to call with for labels (B, L): those, or what the network makes of them.

        Args:
            generators: B of them, one a picture.
        """
        place = getattr(self.net, "placed", None)
        result: Tensor = labels if place is None else place(labels, generators)
        return result

    def _estimate(self, x_t: Tensor, timestep: int, labels: Tensor) -> Tensor:
        timesteps = torch.full((len(x_t),), timestep, device=x_t.device)
        output = self.net(x_t, timesteps, labels).to(x_t.dtype)
        alpha_bar = self.schedule.alpha_bar(timesteps, x_t)
        return self.prediction.to_x0(output, x_t, alpha_bar)
