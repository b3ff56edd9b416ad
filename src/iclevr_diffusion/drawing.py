"""How a trained network draws: a diffusion model step by step, a generator in one pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, Step, sample
from iclevr_diffusion.nets.dcgan import Generator
from iclevr_diffusion.rng import randn

OnStep = Callable[[Step], None]


class Drawer(ABC):
    """Draws pictures of labels.

    sampler: the name of what it draws with.
    steps: how often ``on_step`` is called a batch.
    guidance_scale: 1 for none.
    guidance_min_noise: noise-to-signal ratio below which steps are not guided.
    network_calls: a picture, guidance counted.
    image_shape: (C, H, W).
    """

    sampler: str
    steps: int
    guidance_scale: float = 1.0
    guidance_min_noise: float = 0.0
    image_shape: tuple[int, int, int]

    @abstractmethod
    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """One picture for each row of ``labels``; as :func:`~.diffusion.sampling.sample`."""

    @property
    def network_calls(self) -> int:
        return self.steps

    @property
    def folder(self) -> str:
        """A name for the folder of its pictures."""
        return f"{self.sampler}_{self.steps}_w{self.guidance_scale:g}"

    def description(self) -> dict[str, Any]:
        """How it draws, as plain values for a file of figures."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "network_calls": self.network_calls,
        }


class DiffusionDrawer(Drawer):
    """From noise, step by step.

    Raises:
        ValueError: the sampler does not know the denoiser's schedule, or takes more steps than that
            has timesteps.
    """

    def __init__(
        self, denoiser: Denoiser, sampler: Sampler, image_shape: tuple[int, int, int]
    ) -> None:
        self.timesteps: list[int] = sampler.scheduler(denoiser.schedule).timesteps.tolist()
        self.denoiser = denoiser
        self.with_sampler = sampler
        self.sampler, self.steps = sampler.name, sampler.steps
        self.guidance_scale = denoiser.guidance_scale
        self.guidance_min_noise = denoiser.min_noise
        self.image_shape = image_shape

    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        return sample(
            self.denoiser,
            labels,
            self.with_sampler,
            generators,
            self.image_shape,
            on_step,
            batch_size,
        )

    @property
    def network_calls(self) -> int:
        return sum(2 if self.denoiser.is_guided(timestep) else 1 for timestep in self.timesteps)

    def description(self) -> dict[str, Any]:
        result = super().description() | self.with_sampler.description()
        if self.guidance_min_noise:
            result["guidance_min_noise"] = self.guidance_min_noise
        return result

    def __str__(self) -> str:
        above = f" above noise {self.guidance_min_noise:g}" if self.guidance_min_noise else ""
        return f"{self.with_sampler}, guidance {self.guidance_scale:g}{above}"


class GeneratorDrawer(Drawer):
    """In one pass of a GAN's generator: one step, whose estimate is the picture."""

    sampler, steps = "generator", 1

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.image_shape = generator.image_shape

    @torch.no_grad()
    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        images = []
        for start in range(0, len(labels), batch_size):
            rows = slice(start, min(start + batch_size, len(labels)))
            z = randn((self.generator.latent,), list(generators[rows])).to(labels.device)
            drawn = self.generator(z, labels[rows]).float()
            if on_step is not None:
                on_step(Step(rows, 0, 0, drawn, drawn))
            images.append(drawn)
        return torch.cat(images)

    def __str__(self) -> str:
        return "generator, one pass"
