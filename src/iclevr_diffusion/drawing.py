"""How a trained network draws: a diffusion model step by step, a generator in one pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

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
    network_calls: a picture, guidance counted.
    image_shape: (C, H, W).
    """

    sampler: str
    steps: int
    guidance_scale: float = 1.0
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

    def placed(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Labels (B, L) with what the network samples before the image, if anything: positions.

        To draw with these, and the same generators, gives the same images as with ``labels``.
        """
        return labels

    @property
    def network_calls(self) -> int:
        return self.steps * (1 if self.guidance_scale == 1 else 2)

    @property
    def folder(self) -> str:
        """A name for the folder of its pictures."""
        return f"{self.sampler}_{self.steps}_w{self.guidance_scale:g}"

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps} steps, guidance {self.guidance_scale:g}"


class DiffusionDrawer(Drawer):
    """From noise, step by step.

    Raises:
        ValueError: the sampler does not know the denoiser's schedule, or takes more steps than that
            has timesteps.
    """

    def __init__(
        self, denoiser: Denoiser, sampler: Sampler, image_shape: tuple[int, int, int]
    ) -> None:
        sampler.scheduler(denoiser.schedule)
        self.denoiser = denoiser
        self.with_sampler = sampler
        self.sampler, self.steps = sampler.name, sampler.steps
        self.guidance_scale = denoiser.guidance_scale
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

    def placed(self, labels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return self.denoiser.placed(labels, generators)


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
