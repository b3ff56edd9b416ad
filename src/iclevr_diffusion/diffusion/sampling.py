"""From noise to pictures: the one loop over a diffusers scheduler.

Whatever the network predicts, the denoiser turns it into x̂_0 first, clamped to [-1, 1], and the
scheduler is told ``prediction_type="sample"``. So every sampler works with every parametrisation
and clips alike, and none divides by √ᾱ_t ≈ 0 at the first step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from torch import Tensor

from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.imports import deferred
from iclevr_diffusion.rng import randn

# The names of diffusers' classes, of which only the one that is used is imported.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Ho et al. 2020, algorithm 2: it adds noise at each step.
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
    # DPM-Solver++(2M) for the reverse SDE (Lu et al. 2022, version 2): it adds noise at each step.
    "sde_dpm_solver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
}
STOCHASTIC = ("ddpm", "sde_dpm_solver")
SPACINGS = ("trailing", "karras")


class Step(NamedTuple):
    """What ``on_step`` sees after each step.

    rows: which rows of the labels these are; a large drawing goes in batches.
    number: 0 … steps-1.
    timestep: the timestep that was denoised, T-1 at first.
    x_t: what the next step starts from, (B, C, H, W), about [-1, 1] once the noise is gone.
    x0: the estimate of the clean picture, (B, C, H, W), in [-1, 1].
    """

    rows: slice
    number: int
    timestep: int
    x_t: Tensor
    x0: Tensor


class Sampler:
    """A diffusers scheduler of a given name and number of steps.

    Args:
        name: ``ddpm``, ``ddim``, ``dpm_solver``, ``sde_dpm_solver`` or ``unipc``.
        steps: calls of the denoiser, 1 … T.
        spacing: of the timesteps; the first one is T-1, where the training noise ended.
            ``trailing`` (Lin et al. 2023, arXiv 2305.08891, table 2): evenly. ``karras``: see
            :func:`karras_timesteps`.
        max_noise, min_noise, rho: of ``karras``: the noise-to-signal ratios of its second and its
            last step, and its exponent; the larger, the more steps are at low noise.

    Raises:
        ValueError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        name: str = "dpm_solver",
        steps: int = 20,
        spacing: str = "trailing",
        max_noise: float = 4.0,
        min_noise: float = 0.02,
        rho: float = 5.0,
    ) -> None:
        if not isinstance(name, str) or name not in SAMPLERS:
            raise ValueError(f"sampler.name must be one of {', '.join(SAMPLERS)}; got {name!r:.60}")
        if type(steps) is not int or steps < 1:
            raise ValueError(f"sampler.steps must be a whole number from 1 up, got {steps!r:.60}")
        if spacing not in SPACINGS:
            raise ValueError(
                f"sampler.spacing must be one of {', '.join(SPACINGS)}; got {spacing!r:.60}"
            )
        if not 0 < min_noise < max_noise < math.inf:
            raise ValueError(
                "sampler.min_noise must be above 0 and below sampler.max_noise,"
                f" got {min_noise} and {max_noise}"
            )
        if not 0 < rho < math.inf:
            raise ValueError(f"sampler.rho must be above 0, got {rho}")
        self.name = name
        self.steps = steps
        self.spacing = spacing
        self.max_noise, self.min_noise, self.rho = max_noise, min_noise, rho

    def description(self) -> dict[str, Any]:
        """The settings that count, by the names that a weights folder keeps them under."""
        result: dict[str, Any] = {"sampler": self.name, "steps": self.steps}
        if self.spacing == "karras":
            names = ("spacing", "max_noise", "min_noise", "rho")
            result |= {name: getattr(self, name) for name in names}
        return result

    def __str__(self) -> str:
        spaced = f", spacing {self.spacing}" if self.spacing != "trailing" else ""
        return f"{self.name} {self.steps} steps{spaced}"

    def timesteps(self, schedule: NoiseSchedule) -> list[int]:
        """The timesteps to denoise: as many as there are steps, distinct, falling, T-1 first.

        Raises:
            ValueError: more steps than the schedule has timesteps.
        """
        if self.steps > schedule.timesteps:
            raise ValueError(
                f"sampler.steps={self.steps} is more than schedule.timesteps={schedule.timesteps}"
            )
        if self.spacing == "karras":
            levels = self.max_noise, self.min_noise, self.rho
            return karras_timesteps(schedule, self.steps, *levels)
        return trailing_timesteps(schedule.timesteps, self.steps)

    def scheduler(self, schedule: NoiseSchedule) -> Any:
        """A fresh diffusers scheduler over that noise schedule, :meth:`timesteps` set.

        Raises:
            ValueError: as :meth:`timesteps`; or a schedule that the sampler does not know.
        """
        timesteps = self.timesteps(schedule)
        kind, settings = SAMPLERS[self.name]
        with deferred("scipy.stats"):  # a second, for beta-distributed noise levels alone
            scheduler_class = getattr(diffusers, kind)
        try:
            scheduler = scheduler_class(
                **schedule.config,
                **settings,
                prediction_type="sample",
                timestep_spacing="trailing",
            )
        except NotImplementedError as error:
            raise ValueError(f"sampler.name={self.name}: {error}") from error
        if kind == "UniPCMultistepScheduler":  # its set_timesteps() takes no timesteps
            scheduler.set_timesteps(self.steps)
            scheduler.timesteps = torch.tensor(timesteps)
            noise = schedule.noise_to_signal().cpu()[timesteps]
            scheduler.sigmas = torch.cat([noise, noise.new_zeros(1)])
            scheduler.num_inference_steps = self.steps
        else:
            scheduler.set_timesteps(timesteps=timesteps)
        return scheduler


def trailing_timesteps(total: int, steps: int) -> list[int]:
    """Evenly spaced timesteps that begin at T-1: round(T - i T / n) - 1 for i = 0 … n-1.

    diffusers' ``timestep_spacing="trailing"`` gives the same ones, except where T / n is rounded
    such that its ``arange`` holds one number more, whose timestep is -1: T = 1000 and n = 61, for
    one.

    Args:
        total: T.
        steps: n, 1 … T.

    Returns:
        n distinct timesteps, falling.
    """
    timesteps: list[int] = (
        (np.arange(total, 0, -total / steps)[:steps].round() - 1).astype(int).tolist()
    )
    return timesteps


def karras_timesteps(
    schedule: NoiseSchedule, steps: int, max_noise: float, min_noise: float, rho: float
) -> list[int]:
    """T-1, then timesteps whose noise-to-signal ratios are spaced as Karras et al. 2022 space σ.

    Their σ_i = (σ_max^(1/ρ) + i / (m-1) (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ, i = 0 … m-1 (arXiv
    2206.00364, eq. 5), here of m = n-1 steps; each becomes the timestep that is nearest to it on a
    logarithmic scale. Where several would be the same one they move apart.

    Sampling begins with pure noise, which is right at T-1 alone. Where the ratio is 4, a frame's
    mean still stands out from the noise of all its pixels together: a network that is shown pure
    noise there takes the scene for a dim one.

    Args:
        steps: n, 1 … T.
        max_noise, min_noise, rho: σ_max, σ_min and ρ, above 0.

    Returns:
        n distinct timesteps, falling.
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
    on_step: Callable[[Step], None] | None = None,
    batch_size: int = 64,
    positions: Tensor | None = None,
    layout: str = "clear",
) -> Tensor:
    """Draw one picture for each row of labels.

    Args:
        denoiser: estimates x_0; it holds the network, its parametrisation and the guidance.
        labels: float32 (B, L), multi-hot, on the network's device.
        sampler: which solver, and how many steps.
        generators: B generators on the CPU, one a picture: a picture does not depend on the rest
            of its batch.
        image_shape: (C, H, W).
        on_step: called after every step of every batch.
        batch_size: pictures to draw at once.
        positions: float32 (B, L, 2), where each object stands, x to the right and y down, in
            [-1, 1]; None samples them from the generators if the network takes positions.
        layout: how to sample them: :class:`~iclevr_diffusion.nets.layout.Layout`'s ``clear`` or
            ``data``.

    Returns:
        x_0 in [-1, 1], float32, (B, C, H, W), on the device of ``labels``.

    Raises:
        ValueError: there is not one generator a picture, there is nothing to draw, or the
            positions are not as above, or the network takes none.
    """
    if len(generators) != len(labels):
        raise ValueError(f"{len(labels)} rows of labels need as many generators")
    if not len(labels):
        raise ValueError("there is nothing to draw: no row of labels")
    if positions is None:
        positions = denoiser.sample_positions(labels, generators, layout)
    labels = denoiser.placed(labels, positions)
    images = []
    for start in range(0, len(labels), batch_size):
        rows = slice(start, min(start + batch_size, len(labels)))
        some = list(generators[rows])
        scheduler = sampler.scheduler(denoiser.schedule)
        x_t = randn(image_shape, some).to(labels.device)
        for number, timestep in enumerate(scheduler.timesteps.tolist()):
            x0 = denoiser(x_t, timestep, labels[rows])
            noise = {"generator": some} if sampler.name in STOCHASTIC else {}
            x_t = scheduler.step(x0, timestep, x_t, **noise).prev_sample
            if on_step is not None:
                on_step(Step(rows, number, timestep, x_t, x0))
        images.append(x_t.clamp(-1, 1))
    return torch.cat(images)
