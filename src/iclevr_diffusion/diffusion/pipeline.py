"""Pipelines: a trained network with the settings to generate images with it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.data.negation import encode_signed
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.samplers import EndSampling, OnStep, Sampler, Step, sample
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.layout import CLEAR, Layout, check_layout
from iclevr_diffusion.models.protocol import position_prior
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import image_generators, randn

STREAM = "sample"  # of the random numbers of the command `sample`


class Pipeline(ABC):
    """A network with the settings that are needed to generate images.

    Attributes:
        sampler_name: Name of the sampler.
        steps: Sampling steps; for each batch, ``on_step`` is called once per step.
        guidance_scale: 1 for no guidance.
        guidance_mode: ``joint``, or ``composed`` (:mod:`~.composed_guidance`).
        layout: The way positions are sampled; None if the network takes none.
        image_shape: (C, H, W).
        vocabulary: The labels.
        ema_length: The length of the weights' average, if it was chosen after the training.
    """

    ema_length: float | None = None
    sampler_name: str
    steps: int
    guidance_scale: float = 1.0
    guidance_mode: str = Guidance.mode
    layout: str | None = None
    image_shape: tuple[int, int, int]
    vocabulary: Vocabulary

    @abstractmethod
    def __call__(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        on_step: OnStep | None = None,
        batch_size: int = 64,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Generate one image for each row of ``labels``; as :func:`~.diffusion.samplers.sample`."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the network."""

    @property
    def position_prior(self) -> Layout | None:
        """The network's prior over positions; None if it takes none."""
        return None

    def check_labels(self, labels: Tensor) -> None:
        """Check that labels (B, L), -1 for negated ones, can be sampled.

        Raises:
            ValueError: A label is negated, and the guidance is not composed.
        """
        Guidance().check_labels(labels)

    def generate(
        self,
        label_set: Sequence[str],
        count: int = 1,
        seed: int = 0,
        positions: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Generate images of one label set, as the ``sample`` command does.

        Example:
            >>> images = pipeline.generate(["red cube", "blue sphere"], count=4, seed=0)

        Args:
            label_set: Names of labels; ``not red cube`` for a negated one, with composed guidance.
            count: Number of images.
            seed: Image i of a seed does not depend on ``count`` or the device, up to rounding.
            positions: (L, D), a row for each label of the vocabulary, for all images: x to the
                right and y down, in [-1, 1], 0 where there is no such label. D is 2, or 4 with
                headings. None: sampled.
            on_step: Called after each sampling step.

        Returns:
            float32, (count, C, H, W), in [-1, 1], on the CPU.

        Raises:
            UserError: A label is unknown, or the network generates NaN or infinite values.
            ValueError: The network takes no positions, or they are outside [-1, 1] or have another
                shape, or a label is negated without composed guidance.
        """
        if positions is not None and self.position_prior is not None:
            if positions.ndim != 2 or len(positions) != len(self.vocabulary):
                wanted = len(self.vocabulary), 2
                raise ValueError(f"positions must be {wanted}, got {tuple(positions.shape)}")
            positions = self.position_prior.snap(positions)
        images = self(
            encode_signed(label_set, self.vocabulary).expand(count, -1).to(self.device),
            image_generators(seed, range(count), STREAM),
            on_step,
            positions=None if positions is None else positions.expand(count, -1, -1),
        )
        refuse_nan(images)
        return images.cpu()

    def sample_positions(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator],
        layout: str | None = None,
    ) -> Tensor | None:
        """Sample the objects' positions, as a call without positions does.

        A call with the same generators afterwards, and these positions, gives the same images::

            positions = pipeline.sample_positions(labels, generators)
            images = pipeline(labels, generators, positions=positions)

        Args:
            labels: (B, L), multi-hot.
            generators: One per image.
            layout: ``clear`` or ``data``; None: this pipeline's.

        Returns:
            (B, L, 2), x to the right and y down, in [-1, 1], 0 where an image has no such label.
            With headings (B, L, 4): x, y, and the cosine and sine of four times the heading, as
            :func:`~iclevr_diffusion.data.poses.encode_poses`; 0, 0 for objects without one. None if
            the network takes no positions.
        """
        prior = self.position_prior
        layout = layout or self.layout or CLEAR
        return None if prior is None else prior.sample(labels, generators, layout)

    def network_calls(self, labels: Tensor) -> float:
        """Count the calls of the network per image, the mean over labels (B, L).

        A guided step takes two calls; for composed guidance, see
        :class:`~.composed_guidance.ComposedGuidance`.
        """
        return float(self.steps)

    @property
    def folder(self) -> str:
        """A folder name for images generated with these settings."""
        name = f"{self.sampler_name}_{self.steps}_w{self.guidance_scale:g}"
        if self.guidance_mode != Guidance.mode:
            name += f"_{self.guidance_mode}"
        if self.ema_length is not None:
            name += f"_ema{self.ema_length:g}"
        return name if self.layout in (None, CLEAR) else f"{name}_{self.layout}"

    @property
    def without_layout(self) -> str:
        """The settings as text, without the layout."""
        return f"{self.sampler_name} {self.steps} steps, guidance {self.guidance_scale:g}"

    def description(self) -> dict[str, Any]:
        """Return the settings as plain values, for files of results."""
        ema = {} if self.ema_length is None else {"ema_length": self.ema_length}
        return {
            "sampler": self.sampler_name,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "layout": self.layout,
            **ema,
        }

    def __str__(self) -> str:
        layout = "" if self.layout is None else f", layout {self.layout}"
        ema = "" if self.ema_length is None else f", EMA length {self.ema_length:g}"
        return f"{self.without_layout}{layout}{ema}"


class DenoisingPipeline(Pipeline):
    """A diffusion model: from noise, step by step.

    Args:
        denoiser: The network, its schedule and prediction, and the guidance.
        sampler: The sampler.
        image_shape: (C, H, W).
        layout: The way to sample positions, ``clear`` or ``data``.
        vocabulary: The labels.

    Raises:
        ValueError: The sampler has more steps than the schedule has timesteps, the layout is
            unknown, or it is set and the network takes no positions.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        image_shape: tuple[int, int, int],
        layout: str = CLEAR,
        vocabulary: Vocabulary = ICLEVR_LABELS,
    ) -> None:
        self.timesteps: list[int] = sampler.timesteps(denoiser.schedule)
        refuse_layout(layout, denoiser.takes_positions)
        self.denoiser = denoiser
        self.sampler = sampler
        self.sampler_name, self.steps = sampler.name, sampler.steps
        self.guidance_scale, self.guidance_mode = denoiser.guidance.scale, denoiser.guidance.mode
        self.layout = layout if denoiser.takes_positions else None
        self.image_shape = image_shape
        self.vocabulary = vocabulary

    @property
    def device(self) -> torch.device:
        return self.denoiser.schedule.device

    @property
    def position_prior(self) -> Layout | None:
        return position_prior(self.denoiser.net)

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
            self.sampler,
            generators,
            self.image_shape,
            on_step,
            batch_size,
            positions,
            self.layout or CLEAR,
        )

    def check_labels(self, labels: Tensor) -> None:
        self.denoiser.guidance.check_labels(labels)

    def network_calls(self, labels: Tensor) -> float:
        calls = [self.denoiser.calls(labels, timestep).sum() for timestep in self.timesteps]
        return int(sum(calls)) / len(labels)

    @property
    def without_layout(self) -> str:
        return f"{self.sampler}, {self.denoiser.guidance}"

    def description(self) -> dict[str, Any]:
        own = super().description() | self.sampler.description()
        return own | self.denoiser.guidance.description()


class GeneratorPipeline(Pipeline):
    """A GAN's generator: one step, whose estimate is the image."""

    sampler_name, steps = "generator", 1

    def __init__(self, generator: Generator, vocabulary: Vocabulary = ICLEVR_LABELS) -> None:
        self.generator = generator
        self.image_shape = generator.image_shape
        self.vocabulary = vocabulary

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.generator.parameters()).device
        return device

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
        self.check_labels(labels)
        batches = []
        for start in range(0, len(labels), batch_size):
            rows = slice(start, min(start + batch_size, len(labels)))
            z = randn((self.generator.latent,), list(generators[rows])).to(labels.device)
            images = self.generator(z, labels[rows]).float()
            if on_step is not None:
                try:
                    changed = on_step(Step(rows, 0, 0, images, images))
                except EndSampling as end:
                    changed = end.x_t
                images = images if changed is None else changed
            batches.append(images)
        return torch.cat(batches)

    def __str__(self) -> str:
        return "generator, one pass"


def refuse_layout(layout: str, takes_positions: bool) -> None:
    """Check a layout, and that it is not set for a network without positions.

    Raises:
        ValueError: The layout is unknown, or it is not ``clear`` and the network takes no
            positions.
    """
    check_layout(layout)
    if layout != CLEAR and not takes_positions:
        raise ValueError(f"layout={layout}: these weights take no positions; leave layout out")


def refuse_nan(images: Tensor) -> None:
    """Check that generated images are finite.

    Raises:
        UserError: A value is NaN or infinite.
    """
    if not images.isfinite().all():
        raise UserError("the network generates NaN or infinite values: these weights are broken")
