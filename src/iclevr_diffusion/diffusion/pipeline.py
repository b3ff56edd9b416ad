"""How a trained network draws: a diffusion model step by step, a generator in one pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.samplers import Sampler, Step, sample
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.layout import CLEAR, check_layout
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import randn

OnStep = Callable[[Step], None]


class Pipeline(ABC):
    """Draws images of labels.

    sampler: the name of what it draws with.
    steps: how often ``on_step`` is called a batch.
    guidance_scale: 1 for none.
    layout: how positions are sampled if none are given; None if the network takes none.
    network_calls: an image, guidance counted.
    image_shape: (C, H, W).
    """

    sampler: str
    steps: int
    guidance_scale: float = 1.0
    layout: str | None = None
    image_shape: tuple[int, int, int]

    @abstractmethod
    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
        positions: Tensor | None = None,
    ) -> Tensor:
        """One image for each row of ``labels``; as :func:`~.diffusion.samplers.sample`."""

    def positions(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        layout: str | None = None,
    ) -> Tensor | None:
        """Sample where the objects stand, as a call without positions does.

        A call with the same generators afterwards, and these positions, gives the same images::

            positions = pipeline.positions(labels, generators)
            images = pipeline(labels, generators, positions=positions)

        Args:
            labels: (B, L), multi-hot.
            generators: B of them, one per image.
            layout: ``clear`` or ``data``; None: this pipeline's.

        Returns:
            (B, L, 2), x to the right and y down, in [-1, 1], 0 where an image has no such label;
            None if the network takes no positions.
        """
        return None

    @property
    def network_calls(self) -> int:
        return self.steps

    @property
    def folder(self) -> str:
        """A name for the folder of its images."""
        name = f"{self.sampler}_{self.steps}_w{self.guidance_scale:g}"
        return name if self.layout in (None, CLEAR) else f"{name}_{self.layout}"

    @property
    def without_layout(self) -> str:
        """How it draws once it is known where the objects stand."""
        return f"{self.sampler} {self.steps} steps, guidance {self.guidance_scale:g}"

    def description(self) -> dict[str, Any]:
        """How it draws, as plain values for a file of figures."""
        return {
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "layout": self.layout,
            "network_calls": self.network_calls,
        }

    def __str__(self) -> str:
        layout = "" if self.layout is None else f", layout {self.layout}"
        return f"{self.without_layout}{layout}"


class DenoisingPipeline(Pipeline):
    """From noise, step by step.

    Args:
        layout: how to sample positions where none are given: ``clear`` or ``data``.

    Raises:
        ValueError: the sampler does not know the denoiser's schedule, or takes more steps than that
            has timesteps; there is no such layout, or the network takes no positions.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        image_shape: tuple[int, int, int],
        layout: str = CLEAR,
    ) -> None:
        self.timesteps: list[int] = sampler.scheduler(denoiser.schedule).timesteps.tolist()
        refuse_layout(layout, denoiser.takes_positions)
        self.denoiser = denoiser
        self.with_sampler = sampler
        self.sampler, self.steps = sampler.name, sampler.steps
        self.guidance_scale = denoiser.guidance.scale
        self.layout = layout if denoiser.takes_positions else None
        self.image_shape = image_shape

    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
        positions: Tensor | None = None,
    ) -> Tensor:
        return sample(
            self.denoiser,
            labels,
            self.with_sampler,
            generators,
            self.image_shape,
            on_step,
            batch_size,
            positions,
            self.layout or CLEAR,
        )

    def positions(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        layout: str | None = None,
    ) -> Tensor | None:
        return self.denoiser.sample_positions(labels, generators, layout or self.layout or CLEAR)

    @property
    def network_calls(self) -> int:
        return sum(2 if self.denoiser.is_guided(timestep) else 1 for timestep in self.timesteps)

    @property
    def without_layout(self) -> str:
        return f"{self.with_sampler}, {self.denoiser.guidance}"

    def description(self) -> dict[str, Any]:
        own = super().description() | self.with_sampler.description()
        return own | self.denoiser.guidance.description()


class GeneratorPipeline(Pipeline):
    """In one pass of a GAN's generator: one step, whose estimate is the image."""

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
        positions: Tensor | None = None,
    ) -> Tensor:
        if positions is not None:
            raise ValueError("these weights take no positions")
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


def refuse_layout(layout: str, takes_positions: bool) -> None:
    """Check that a network can be drawn with under a layout.

    Raises:
        ValueError: there is no such layout, or it is not ``clear`` and the network takes no
            positions.
    """
    check_layout(layout)
    if layout != CLEAR and not takes_positions:
        raise ValueError(f"layout={layout}: these weights take no positions; leave layout out")


def refuse_nan(images: Tensor) -> None:
    """Refuse drawn images of which no more can be said.

    Raises:
        UserError: a value is NaN or infinite.
    """
    if not images.isfinite().all():
        raise UserError("the network draws NaN or infinite values: these weights are broken")
