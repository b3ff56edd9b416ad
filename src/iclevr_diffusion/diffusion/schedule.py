"""The forward process: how much noise an image holds at each timestep.

q(x_t | x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I), t = 0 … T-1 (Ho et al. 2020, arXiv 2006.11239, eq. 4).
The betas are those of diffusers' schedulers, so training and sampling share one table.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

MAX_TIMESTEPS = 100_000


class NoiseSchedule(nn.Module):
    """The table ᾱ_t of one beta schedule. It holds no parameters; ``to(device)`` moves it.

    Args:
        name: a ``beta_schedule`` of diffusers: ``linear``, ``scaled_linear``,
            ``squaredcos_cap_v2`` (Nichol & Dhariwal 2021, eq. 17), ``sigmoid``, …
        timesteps: T, in 1..100,000.
        beta_start, beta_end: the first and the last; ``squaredcos_cap_v2`` ignores them. In (0, 1).

    Raises:
        ValueError: diffusers has no such schedule, a number is none or out of range, or together
            they leave less of the image than float32 can hold.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        name: str = "squaredcos_cap_v2",
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        super().__init__()
        if type(timesteps) is not int or not 1 <= timesteps <= MAX_TIMESTEPS:
            raise ValueError(
                f"schedule.timesteps must be a whole number in 1..{MAX_TIMESTEPS},"
                f" got {timesteps!r:.60}"
            )
        for end, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
            if not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ValueError(f"schedule.{end} must be above 0 and below 1, got {beta!r:.60}")
        self.timesteps = timesteps
        self.config: dict[str, Any] = {
            "beta_schedule": name,
            "num_train_timesteps": timesteps,
            "beta_start": beta_start,
            "beta_end": beta_end,
        }
        try:
            table = DDPMScheduler(**self.config).alphas_cumprod
        except NotImplementedError:
            raise ValueError(f"diffusers has no beta schedule named {name!r:.60}") from None
        if table.min() < torch.finfo(torch.float32).tiny:
            raise ValueError(
                f"schedule.name={name} leaves nothing of the image before the last of"
                f" {timesteps} timesteps; take fewer, or a smaller schedule.beta_end"
            )
        self.register_buffer("alphas_cumprod", table, persistent=False)

    def alpha_bar(self, timesteps: Tensor, like: Tensor) -> Tensor:
        """ᾱ_t for int64 timesteps (B,), in the dtype of ``like`` (B, …), shaped to multiply it."""
        table = self.alphas_cumprod.to(like.dtype)
        return table[timesteps].view(-1, *[1] * (like.ndim - 1))

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float32, (B,), for int64 timesteps (B,)."""
        alpha_bar = self.alphas_cumprod[timesteps]
        return alpha_bar / (1 - alpha_bar)

    def noise_to_signal(self) -> Tensor:
        """√((1 - ᾱ_t) / ᾱ_t) of every timestep, float32, (T,); it rises."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, for x0 and noise (B, C, H, W), timesteps int64 (B,).

        Give float32 or better: bfloat16 would round √ᾱ_t at low noise (0.9989 → 0.9961).
        """
        alpha_bar = self.alpha_bar(timesteps, x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
