"""From a network's output to the clean image, with classifier-free guidance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.loss import Prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, at all noise levels or in an interval of them.

    scale: w of :class:`Denoiser`; 1 means none.
    min_noise, max_noise: noise-to-signal ratios √((1 - ᾱ) / ᾱ) below and above which nothing is
        guided, and each step is one call (Kynkäänniemi et al. 2024, arXiv 2404.07724); None: no
        upper end.
    label_drop: of the training: the probability that a frame's labels are replaced by zeros, which
        teaches the unconditional estimate.

    Raises:
        ValueError: the scale or a ratio is negative, infinite or NaN, or the interval is empty.
    """

    scale: float = 1.0
    min_noise: float = 0.0
    max_noise: float | None = None
    label_drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_drop <= 1:
            raise ValueError(f"guidance.label_drop must be in [0, 1], got {self.label_drop}")
        for name in ("scale", "min_noise", "max_noise"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"guidance.{name} must be 0 or more, got {value}")
        if self.max_noise is not None and self.max_noise <= self.min_noise:
            raise ValueError(
                f"guidance.max_noise must be above guidance.min_noise={self.min_noise:g},"
                f" got {self.max_noise:g}"
            )

    def acts_at(self, noise: float) -> bool:
        """Whether a step at that noise-to-signal ratio is guided."""
        return (
            self.scale != 1
            and noise >= self.min_noise
            and (self.max_noise is None or noise <= self.max_noise)
        )

    def description(self) -> dict[str, Any]:
        """As plain values, for a file; ends that are not set are left out."""
        result = {"guidance_scale": self.scale}
        if self.min_noise:
            result["guidance_min_noise"] = self.min_noise
        if self.max_noise is not None:
            result["guidance_max_noise"] = self.max_noise
        return result

    def __str__(self) -> str:
        if self.scale == 1:
            return "guidance 1"
        above = [f"above {self.min_noise:g}"] if self.min_noise else []
        below = [] if self.max_noise is None else [f"below {self.max_noise:g}"]
        where = f" at noise {' and '.join(above + below)}" if above + below else ""
        return f"guidance {self.scale:g}{where}"


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
        guidance: w, and where; it needs a network trained with dropped labels.
    """

    def __init__(
        self,
        net: Network,
        schedule: NoiseSchedule,
        prediction: Prediction,
        guidance: Guidance | None = None,
    ) -> None:
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.guidance = guidance or Guidance()
        levels = schedule.noise_to_signal().tolist()
        self.guided = [self.guidance.acts_at(level) for level in levels]

    def is_guided(self, timestep: int) -> bool:
        """Whether a step at that timestep is guided, and so costs two calls."""
        return self.guided[timestep]

    def __call__(self, x_t: Tensor, timestep: int, labels: Tensor) -> Tensor:
        """x̂_0 clamped to [-1, 1], float32, (B, C, H, W); labels as :meth:`placed` gives them."""
        if not self.is_guided(timestep):
            return self._estimate(x_t, timestep, labels).clamp(-1, 1)
        both = self._estimate(
            torch.cat([x_t, x_t]), timestep, torch.cat([labels, torch.zeros_like(labels)])
        )
        conditional, unconditional = both.chunk(2)
        return torch.lerp(unconditional, conditional, self.guidance.scale).clamp(-1, 1)

    @property
    def takes_positions(self) -> bool:
        """Whether the network is told where each object stands."""
        return getattr(self.net, "layout", None) is not None

    def sample_positions(
        self, labels: Tensor, generators: Sequence[torch.Generator], layout: str = "clear"
    ) -> Tensor | None:
        """Sample where the objects stand; None if the network takes no positions.

        Args:
            labels: (B, L), multi-hot.
            generators: B of them, one per image. The noise has to come from the same ones,
                afterwards, for the image that :func:`~.samplers.sample` gives by itself.
            layout: as :meth:`~iclevr_diffusion.models.layout.Layout.sample`.

        Returns:
            (B, L, 2), x to the right and y down, in [-1, 1]; 0 where an image has no such label.
        """
        if not self.takes_positions:
            return None
        positions: Tensor = self.net.sample_positions(labels, generators, layout)  # type: ignore[attr-defined]
        return positions

    def placed(self, labels: Tensor, positions: Tensor | None) -> Tensor:
        """What to call with for labels (B, L), and positions (B, L, 2) if the network takes them.

        Raises:
            ValueError: positions of another shape, NaN or outside [-1, 1]; or they are missing, or
                the network takes none.
        """
        if self.takes_positions:
            placed: Tensor = self.net.placed(labels, positions)  # type: ignore[attr-defined]
            return placed
        if positions is not None:
            raise ValueError("these weights take no positions")
        return labels

    def _estimate(self, x_t: Tensor, timestep: int, labels: Tensor) -> Tensor:
        timesteps = torch.full((len(x_t),), timestep, device=x_t.device)
        output = self.net(x_t, timesteps, labels).to(x_t.dtype)
        alpha_bar = self.schedule.alpha_bar(timesteps, x_t)
        return self.prediction.to_x0(output, x_t, alpha_bar)
