"""The sampling loop over diffusers' schedulers.

The denoiser turns whatever the network predicts into an estimate of x_0, clamped to [-1, 1], and
the scheduler gets it as ``prediction_type="sample"``. So every sampler works with every prediction,
clips alike, and never divides by α ≈ 0 at the first step.

Schedulers work on x_t / √(α² + σ²), whose variance is preserved, with the ᾱ = α² / (α² + σ²) of
:attr:`.schedule.Schedule.alphas_cumprod`. So every sampler works with every schedule, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from torch import Tensor

from iclevr_diffusion.diffusion.final_noise import Covariance, add_noise, noise_factor
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.schedule import Schedule
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.models.protocol import position_prior
from iclevr_diffusion.utils.checks import check_bool, check_choice, check_positive
from iclevr_diffusion.utils.imports import deferred
from iclevr_diffusion.utils.rng import randn

LARGEST_LOG = 700  # of a number that a float can hold
# Class names of diffusers, of which only the one in use is imported.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Ho et al. 2020, algorithm 2; stochastic.
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    # Song et al. 2021, arXiv 2010.02502, eq. 12, with η = 0: DPM-Solver++ of order 1 (Lu et al.,
    # section 4). diffusers' DDIMScheduler steps back by T // steps whatever the timesteps are.
    "ddim": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero"},
    ),
    # Lu et al. 2022, arXiv 2211.01095, algorithm 2: DPM-Solver++(2M).
    "dpm_solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    # Zhao et al. 2023, arXiv 2302.04867, order 2.
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "zero"}),
    # DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022, version 2); stochastic.
    "sde_dpm_solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
}
STOCHASTIC = ("ddpm", "sde_dpm_solver")
SPACINGS = ("trailing", "karras")


class Step(NamedTuple):
    """The state after a sampling step, which ``on_step`` receives.

    Attributes:
        rows: The rows of the labels that are sampled in this batch.
        number: The step, 0 … steps-1.
        timestep: The timestep that was denoised; T-1 in step 0.
        x_t: The input of the next step, of preserved variance, (B, C, H, W). After the last step,
            the image, not yet clamped.
        x0: The estimate of the clean image, (B, C, H, W), in [-1, 1].
    """

    rows: slice
    number: int
    timestep: int
    x_t: Tensor
    x0: Tensor


OnStep = Callable[[Step], Tensor | None]


class EndSampling(Exception):
    """Raised in ``on_step`` to end the sampling of a batch.

    Args:
        x_t: Its images, (B, C, H, W), such as the x_t of that step.
    """

    def __init__(self, x_t: Tensor) -> None:
        super().__init__()
        self.x_t = x_t


class Sampler:
    """A sampler's name, number of steps and spacing of timesteps.

    Args:
        name: ``ddpm``, ``ddim``, ``dpm_solver``, ``sde_dpm_solver`` or ``unipc``.
        steps: Denoising steps, 1 … T.
        spacing: Spacing of the timesteps, the first of which is T-1. ``trailing`` (Lin et al. 2023,
            arXiv 2305.08891, table 2): even. ``karras``: see :func:`karras_timesteps`.
        max_noise: With ``karras``, the noise-to-signal ratio of the second step.
        min_noise: With ``karras``, the noise-to-signal ratio of the last step, from three steps on.
        rho: With ``karras``, the exponent; the larger, the more steps are at low noise.
        final_noise: Whether noise of ``final_covariance``, if it is known, is added to the last
            estimate of x_0; see :mod:`~.final_noise`.
        final_covariance: (C, C), measured at the last timestep of this sampler.

    Raises:
        ValueError: A name is unknown, a number is out of range, or the covariance is invalid.
    """

    def __init__(
        self,
        name: str = "dpm_solver",
        steps: int = 20,
        spacing: str = "trailing",
        max_noise: float = 4.0,
        min_noise: float = 0.02,
        rho: float = 5.0,
        final_noise: bool = False,
        final_covariance: Covariance | None = None,
    ) -> None:
        check_choice("name", name, SAMPLERS)
        if type(steps) is not int or steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1, got {steps!r:.60}")
        check_choice("spacing", spacing, SPACINGS)
        if not 0 < min_noise < max_noise < math.inf:
            raise ValueError(
                f"min_noise must be above 0 and below max_noise, got {min_noise} and {max_noise}"
            )
        check_positive("rho", rho)
        if max(abs(math.log(noise)) for noise in (max_noise, min_noise)) / rho > LARGEST_LOG:
            raise ValueError(f"rho={rho} is too small for noise from {min_noise} to {max_noise}")
        self.name = name
        self.steps = steps
        self.spacing = spacing
        self.max_noise, self.min_noise, self.rho = max_noise, min_noise, rho
        check_bool("final_noise", final_noise)
        self.final_noise, self.final_covariance = final_noise, final_covariance
        factor = None if final_covariance is None else noise_factor(final_covariance)
        self.noise_factor = factor if final_noise else None

    def description(self) -> dict[str, Any]:
        """Return the settings as plain values, by the keys of ``sampling.json``."""
        result: dict[str, Any] = {"sampler": self.name, "steps": self.steps}
        if self.spacing == "karras":
            names = ("spacing", "max_noise", "min_noise", "rho")
            result |= {name: getattr(self, name) for name in names}
        if self.final_noise:
            result["final_noise"] = True
        if self.final_covariance is not None:
            result["final_covariance"] = self.final_covariance
        return result

    def __str__(self) -> str:
        spaced = f", spacing {self.spacing}" if self.spacing != "trailing" else ""
        noise = "" if self.noise_factor is None else ", final noise"
        return f"{self.name} {self.steps} steps{spaced}{noise}"

    def timesteps(self, schedule: Schedule) -> list[int]:
        """Return the timesteps to denoise: distinct, falling, one per step, T-1 first.

        Raises:
            ValueError: There are more steps than timesteps.
        """
        if self.steps > schedule.timesteps:
            raise ValueError(
                f"steps={self.steps} is more than the schedule's timesteps={schedule.timesteps}"
            )
        if self.spacing == "karras":
            levels = self.max_noise, self.min_noise, self.rho
            return karras_timesteps(schedule, self.steps, *levels)
        return trailing_timesteps(schedule.timesteps, self.steps)

    def scheduler(self, schedule: Schedule) -> Any:
        """Create a diffusers scheduler over the noise schedule, with :meth:`timesteps` set.

        Raises:
            ValueError: As :meth:`timesteps`.
        """
        timesteps = self.timesteps(schedule)
        class_name, settings = SAMPLERS[self.name]
        with deferred("scipy.stats"):  # which takes a second, and is for other noise levels
            scheduler_class = getattr(diffusers, class_name)
        scheduler = scheduler_class(
            num_train_timesteps=schedule.timesteps, prediction_type="sample", **settings
        )
        # Its other tables of the noise are not used once the timesteps are set.
        scheduler.alphas_cumprod = schedule.alphas_cumprod.cpu()
        if class_name == "UniPCMultistepScheduler":  # set_timesteps() takes no timesteps
            scheduler.set_timesteps(self.steps)
            scheduler.timesteps = torch.tensor(timesteps)
            noise = schedule.noise_to_signal().cpu()[timesteps]
            scheduler.sigmas = torch.cat([noise, noise.new_zeros(1)])
            scheduler.num_inference_steps = self.steps
        else:
            scheduler.set_timesteps(timesteps=timesteps)
        return scheduler


def trailing_timesteps(total: int, steps: int) -> list[int]:
    """Return evenly spaced timesteps from T-1 down: round(T - i T / n) - 1 for i = 0 … n-1.

    diffusers' ``timestep_spacing="trailing"`` gives the same, except where its ``arange`` rounds to
    one entry too many, with timestep -1 (T = 1000 and n = 61, for example).

    Args:
        total: T.
        steps: n, 1 … T.

    Returns:
        n distinct, falling timesteps.
    """
    timesteps: list[int] = (
        (np.arange(total, 0, -total / steps)[:steps].round() - 1).astype(int).tolist()
    )
    return timesteps


def karras_timesteps(
    schedule: Schedule, steps: int, max_noise: float, min_noise: float, rho: float
) -> list[int]:
    """Return T-1, then timesteps with the noise levels of Karras et al. 2022.

    The noise-to-signal ratios are σ_i = (σ_max^(1/ρ) + i / (m-1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ,
    i = 0 … m-1, of m = n-1 steps (arXiv 2206.00364, eq. 5). Each is rounded to the nearest timestep
    on a logarithmic scale; timesteps that would be equal are moved apart.

    Sampling begins with pure noise, which is right at T-1 alone: at a ratio of 4 the mean of an
    image is still visible, and a network that is shown pure noise there generates dim scenes.

    Args:
        schedule: The noise schedule.
        steps: n, 1 … T.
        max_noise: σ_max, above 0.
        min_noise: σ_min, above 0; reached from three steps on.
        rho: ρ, above 0.

    Returns:
        n distinct, falling timesteps.
    """
    first, last = max_noise ** (1 / rho), min_noise ** (1 / rho)
    wanted = torch.linspace(first, last, steps - 1, dtype=torch.float64).pow(rho).log()
    levels = schedule.noise_to_signal().cpu().double().log()
    nearest: list[int] = torch.searchsorted((levels[1:] + levels[:-1]) / 2, wanted).tolist()
    timesteps = [schedule.timesteps - 1]
    for timestep in nearest:
        timesteps.append(min(timestep, timesteps[-1] - 1))
    return [max(timestep, steps - 1 - i) for i, timestep in enumerate(timesteps)]


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    labels: Tensor,
    sampler: Sampler,
    generators: Sequence[torch.Generator],
    image_shape: tuple[int, int, int] = (3, 64, 64),
    on_step: OnStep | None = None,
    batch_size: int = 64,
    positions: Tensor | None = None,
    layout: str = CLEAR,
) -> Tensor:
    """Generate one image for each row of labels.

    Args:
        denoiser: Estimates x_0.
        labels: float32, multi-hot, (B, L), on the network's device; -1 where a label is negated.
        sampler: The solver, its steps and their spacing.
        generators: One generator per image, on the CPU, so that an image does not depend on the
            rest of its batch.
        image_shape: (C, H, W).
        on_step: Called after every step of every batch. It may return another x_t to continue with,
            or raise :class:`EndSampling`.
        batch_size: Images to generate at once.
        positions: float32, (B, L, D), x to the right and y down, in [-1, 1]. None samples them from
            the generators if the network takes positions.
        layout: As :meth:`~iclevr_diffusion.models.layout.Layout.sample`, for sampled positions.

    Returns:
        x_0 in [-1, 1], float32, (B, C, H, W), on the device of ``labels``.

    Raises:
        ValueError: There are no labels, not one generator per image, or invalid positions, or a
            label is negated and the guidance is not composed.
    """
    if len(generators) != len(labels):
        raise ValueError(f"{len(labels)} rows of labels need as many generators")
    if not len(labels):
        raise ValueError("there is nothing to generate: no row of labels")
    denoiser.guidance.check_labels(labels)
    prior = position_prior(denoiser.net)
    if prior is not None and positions is None:
        positions = prior.sample(labels, generators, layout)
    elif prior is not None and positions is not None:
        positions = prior.with_headings(positions, labels, generators)
    positions = denoiser.check_positions(positions, labels)
    schedule = denoiser.schedule
    images = []
    for start in range(0, len(labels), batch_size):
        rows = slice(start, min(start + batch_size, len(labels)))
        batch_generators = list(generators[rows])
        conditions = labels[rows], None if positions is None else positions[rows]
        scheduler = sampler.scheduler(schedule)
        x_t = randn(image_shape, batch_generators).to(labels.device)
        for number, timestep in enumerate(scheduler.timesteps.tolist()):
            x0 = denoiser(x_t * schedule.scale(timestep), timestep, *conditions)
            noise = {"generator": batch_generators} if sampler.name in STOCHASTIC else {}
            x_t = scheduler.step(x0, timestep, x_t, **noise).prev_sample
            if number == sampler.steps - 1 and sampler.noise_factor is not None:
                x_t = add_noise(x_t, sampler.noise_factor, batch_generators)
            if on_step is None:
                continue
            try:
                changed = on_step(Step(rows, number, timestep, x_t, x0))
            except EndSampling as end:
                x_t = end.x_t
                break
            x_t = x_t if changed is None else changed
        images.append(x_t.clamp(-1, 1))
    return torch.cat(images)
