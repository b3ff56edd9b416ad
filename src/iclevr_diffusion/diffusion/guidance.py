"""Estimate x_0 from the network's output, with classifier-free guidance."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.prediction import Prediction, check_compatible
from iclevr_diffusion.diffusion.schedule import Schedule
from iclevr_diffusion.models.layout import check_positions
from iclevr_diffusion.models.protocol import DenoisingNetwork, mean_frame, position_prior
from iclevr_diffusion.utils.checks import check_at_least, check_share

FLAT = 1e-8  # lower bound of a standard deviation, so that a flat image is not divided by zero


class Estimate(Protocol):
    """The network's estimate of x_0 at one timestep, as :class:`Guidance` combines it."""

    def __call__(self, x_t: Tensor, labels: Tensor, positions: Tensor | None) -> Tensor:
        """Estimate x_0, (B, C, H, W), in one network call; zero labels are unconditional."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, at all noise levels or within an interval.

    With a scale w, it extrapolates from the unconditional estimate u (all labels zero) through the
    conditional estimate c: x̂_0 = u + w (c - u) (Ho & Salimans 2022, arXiv 2207.12598, eq. 6, where
    our w is their 1 + w). Both come from one batched call. Every prediction is affine in x_0 at a
    given x_t, so this equals guidance of ε or v. Without guidance, w is 1, and only c is needed.

    Args:
        scale: w; 1 is no guidance.
        min_noise: Noise-to-signal ratio σ / α below which there is no guidance, so that a step
            takes one network call (Kynkäänniemi et al. 2024, arXiv 2404.07724).
        max_noise: Noise-to-signal ratio above which there is no guidance; None for no upper limit.
        rescale: φ in [0, 1], how far each guided estimate is brought back to the standard deviation
            of the unguided one, which guidance increases (Lin et al. 2024, arXiv 2305.08891, eq. 15
            and 16; ``guidance_rescale`` in diffusers). 0 for not at all. The deviation is from the
            mean training frame, if the network has it (``mean_frame``), else from 0.
        label_drop: Probability of replacing a training image's labels by zeros, which trains the
            unconditional estimate that guidance needs.

    Attributes:
        mode: Name in settings and files.

    Raises:
        ValueError: A number is out of range, or the interval is empty.
    """

    mode: ClassVar[str] = "joint"
    scale: float = 1.0
    min_noise: float = 0.0
    max_noise: float | None = None
    label_drop: float = 0.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "min_noise", "max_noise"):
            value = getattr(self, name)
            if value is not None:
                check_at_least(name, value, 0)
        if self.max_noise is not None and self.max_noise <= self.min_noise:
            raise ValueError(
                f"max_noise must be above min_noise={self.min_noise:g}, got {self.max_noise:g}"
            )
        check_share("label_drop", self.label_drop)
        check_share("rescale", self.rescale)

    def check_label_drop(self, label_drop: float | None) -> None:
        """Check that a network trained with this ``label_drop`` (None if unknown) can be guided.

        Raises:
            ValueError: It was trained without dropped labels, which a scale other than 1 needs.
        """
        if label_drop == 0 and self.scale != 1:
            raise ValueError(
                f"guidance.scale={self.scale:g} needs weights that were trained with dropped labels"
                " (guidance=cfg); these were not, so use guidance.scale=1"
            )

    def scale_at(self, noise: float) -> float:
        """Return w at a noise-to-signal ratio, 1 outside the interval."""
        below = self.max_noise is None or noise <= self.max_noise
        return self.scale if noise >= self.min_noise and below else 1.0

    def check_labels(self, labels: Tensor) -> None:
        """Check that labels (B, L) can be sampled.

        Raises:
            ValueError: A label is negated, which only ``composed`` guidance can express, with a
                scale other than 1.
        """
        if (labels < 0).any():
            raise ValueError("labels with 'not' need guidance.mode=composed")

    def calls(self, labels: Tensor, scale: float) -> Tensor:
        """Count the network calls per image in a step with w = ``scale``, int64, (B,).

        Args:
            labels: (B, L).
            scale: As :meth:`scale_at` returns it.
        """
        return torch.full((len(labels),), 1 if scale == 1 else 2)

    def estimate(
        self,
        estimate: Estimate,
        x_t: Tensor,
        labels: Tensor,
        positions: Tensor | None,
        scale: float,
        mean: Tensor | float = 0.0,
    ) -> Tensor:
        """Estimate x_0 in one batched network call.

        Args:
            estimate: The network's estimate at this timestep.
            x_t: float32, (B, C, H, W).
            labels: float32, (B, L).
            positions: float32, (B, L, D), or None.
            scale: w, as :meth:`scale_at` returns it.
            mean: The image from which ``rescale`` measures deviations, (C, H, W), or 0.

        Returns:
            x̂_0, (B, C, H, W), not clamped.
        """
        if scale == 1:
            return estimate(x_t, labels, positions)
        both = estimate(
            torch.cat([x_t, x_t]),
            torch.cat([labels, torch.zeros_like(labels)]),
            None if positions is None else torch.cat([positions, torch.zeros_like(positions)]),
        )
        conditional, unconditional = both.chunk(2)
        return self.rescaled(torch.lerp(unconditional, conditional, scale), conditional, mean)

    def rescaled(self, guided: Tensor, unguided: Tensor, mean: Tensor | float) -> Tensor:
        """Return guided estimates of x_0 after ``rescale``, all (B, C, H, W)."""
        if not self.rescale:
            return guided
        deviation = guided - mean
        ratio = (unguided - mean).flatten(1).std(1) / deviation.flatten(1).std(1).clamp_min(FLAT)
        return guided + self.rescale * (ratio - 1).view(-1, 1, 1, 1) * deviation

    def description(self) -> dict[str, Any]:
        """Return the sampling settings as plain values, without unset limits of the interval."""
        result: dict[str, Any] = {"guidance_scale": self.scale}
        if self.min_noise:
            result["guidance_min_noise"] = self.min_noise
        if self.max_noise is not None:
            result["guidance_max_noise"] = self.max_noise
        if self.rescale:
            result["guidance_rescale"] = self.rescale
        return result

    def __str__(self) -> str:
        if self.scale == 1:
            return "guidance 1"
        above = [f"above {self.min_noise:g}"] if self.min_noise else []
        below = [] if self.max_noise is None else [f"below {self.max_noise:g}"]
        interval = f" at noise {' and '.join(above + below)}" if above + below else ""
        rescale = f", rescale {self.rescale:g}" if self.rescale else ""
        return f"guidance {self.scale:g}{interval}{rescale}"


class Denoiser:
    """Estimates x_0 from x_t, labels and positions.

    Args:
        net: The network.
        schedule: The schedule it was trained with.
        prediction: What the network predicts.
        guidance: Needs a network trained with dropped labels; None for no guidance.

    Raises:
        ValueError: The prediction is undefined for the schedule.
    """

    def __init__(
        self,
        net: DenoisingNetwork,
        schedule: Schedule,
        prediction: Prediction,
        guidance: Guidance | None = None,
    ) -> None:
        check_compatible(prediction, schedule)
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.guidance = guidance or Guidance()
        self.takes_positions = net.takes_positions
        levels = schedule.noise_to_signal().tolist()
        self.scales = [self.guidance.scale_at(level) for level in levels]

    def calls(self, labels: Tensor, timestep: int) -> Tensor:
        """Count the network calls per image in a step, int64, (B,)."""
        return self.guidance.calls(labels, self.scales[timestep])

    def __call__(
        self, x_t: Tensor, timestep: int, labels: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Estimate x_0, clamped to [-1, 1], float32, (B, C, H, W).

        Args:
            x_t: float32, (B, C, H, W).
            timestep: The timestep, the same for all images.
            labels: float32, multi-hot, (B, L); -1 where a label is negated.
            positions: float32, (B, L, D), for a network that takes positions, else None.
        """
        estimate = partial(self.estimate, timestep)
        scale, mean = self.scales[timestep], mean_frame(self.net).to(x_t)
        return self.guidance.estimate(estimate, x_t, labels, positions, scale, mean).clamp(-1, 1)

    def check_positions(self, positions: Tensor | None, labels: Tensor) -> Tensor | None:
        """Check the positions of labels (B, L); return them with the labels' dtype and device.

        Raises:
            ValueError: Their shape is not (B, L, 2 or 4), one is NaN or outside [-1, 1], they are
                missing, or the network does not take positions.
        """
        prior = position_prior(self.net)
        if prior is None:
            if positions is not None:
                raise ValueError("these weights take no positions")
            return None
        if positions is None:
            raise ValueError("these weights need the position of each object")
        return check_positions(positions, labels, prior.dimensions).to(labels)

    def estimate(
        self, timestep: int, x_t: Tensor, labels: Tensor, positions: Tensor | None
    ) -> Tensor:
        """Estimate x_0 without guidance, not clamped; the arguments are those of a call."""
        timesteps = torch.full((len(x_t),), timestep, device=x_t.device)
        output = self.net(x_t, timesteps, labels, positions).to(x_t.dtype)
        alpha, sigma = self.schedule.alpha(timesteps, x_t), self.schedule.sigma(timesteps, x_t)
        return self.prediction.to_x0(output, x_t, alpha, sigma)
