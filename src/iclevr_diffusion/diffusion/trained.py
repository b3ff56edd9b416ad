"""Trained networks, with the settings that are needed to generate images with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from iclevr_diffusion.data.holdout import Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.diffusion.composed_guidance import guidance_of
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline, GeneratorPipeline, refuse_layout
from iclevr_diffusion.diffusion.prediction import Prediction
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import Schedule
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.models.protocol import DenoisingNetwork, flops, forward_flops
from iclevr_diffusion.utils.closest import did_you_mean
from iclevr_diffusion.utils.imports import is_own_code

DEFAULT_SAMPLING = {
    "sampler": "dpm_solver",
    "steps": 20,
    "guidance_mode": Guidance.mode,
    "guidance_scale": 1.0,
}
# Arguments of the sampler, besides its name and steps, and of the guidance, with their types.
SAMPLER_KEYS = {
    "spacing": str,
    "max_noise": float,
    "min_noise": float,
    "rho": float,
    "final_noise": bool,
    "final_covariance": list,
}
GUIDANCE_KEYS = {
    "mode": str,
    "scale": float,
    "min_noise": float,
    "max_noise": float,
    "rescale": float,
}
SAMPLING_KEYS = {  # of sampling.json
    "sampler": str,
    "steps": int,
    **SAMPLER_KEYS,
    **{f"guidance_{name}": kind for name, kind in GUIDANCE_KEYS.items()},
    "label_drop": float,
}


@dataclass(frozen=True)
class Model:
    """A trained diffusion model.

    Attributes:
        net: The network, a :class:`~iclevr_diffusion.models.protocol.DenoisingNetwork` in
            evaluation mode.
        schedule: The schedule of its training.
        prediction: What the network predicts.
        sampling: The default sampling settings, any of :data:`SAMPLING_KEYS`.
        data: The description of the training data; empty if unknown.
        vocabulary: Its labels.
        split: The label sets that the training held out; None if it held out none.
    """

    net: nn.Module
    schedule: Schedule
    prediction: Prediction
    sampling: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary = ICLEVR_LABELS
    split: Split | None = None

    def to(self, device: torch.device) -> "Model":
        """Return the model on a device; the network itself is moved."""
        net = nn.Module.to(self.net, device)  # that of diffusers imports what offloads to disk
        return replace(self, net=net, schedule=self.schedule.to(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        size = cast(DenoisingNetwork, self.net).config["image_size"]
        return 3, size, size

    def pipeline(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        layout: str = CLEAR,
        **more: Any,
    ) -> DenoisingPipeline:
        """Create a pipeline with the default sampling settings, except for those given.

        Args:
            sampler: Its name, such as ``ddim``.
            steps: Sampling steps.
            guidance_scale: As ``scale`` of :class:`~.guidance.Guidance`.
            layout: The way to sample positions, ``clear`` or ``data``.
            more: Other settings by their :data:`SAMPLING_KEYS`: arguments of the
                :class:`~.samplers.Sampler`, such as ``spacing``; ``guidance_mode``, which is
                ``joint`` or ``composed`` (:mod:`~.composed_guidance`); and those of the
                :class:`~.guidance.Guidance`, such as ``guidance_rescale``.

        Raises:
            ValueError: A setting is unknown or out of range, or these weights take no guidance or
                positions.
        """
        given = {"sampler": sampler, "steps": steps, "guidance_scale": guidance_scale, **more}
        settings: dict[str, Any] = DEFAULT_SAMPLING | self.with_sampling(given).sampling
        guidance = make_guidance(settings)
        guidance.check_label_drop(settings.get("label_drop"))
        net = cast(DenoisingNetwork, self.net)
        denoiser = Denoiser(net, self.schedule, self.prediction, guidance)
        sampling = make_sampler(settings)
        return DenoisingPipeline(denoiser, sampling, self.image_shape, layout, self.vocabulary)

    def with_sampling(self, settings: Mapping[str, Any]) -> "Model":
        """Return the model with other sampling settings, where they are not None.

        Raises:
            ValueError: A setting is unknown or out of range, or they are no mapping.
        """
        if not isinstance(settings, Mapping):
            raise ValueError(
                f"sampling must be a dict such as {{'sampler': 'ddim'}}, got {settings!r:.60}"
            )
        for key in settings:
            if key not in SAMPLING_KEYS:
                closest = did_you_mean(key, SAMPLING_KEYS)
                raise ValueError(f"no sampling setting is named {key}{closest}")
        given = {key: value for key, value in settings.items() if value is not None}
        sampler = make_sampler(DEFAULT_SAMPLING | self.sampling | given)
        if sampler.noise_factor is not None and "final_covariance" not in given:
            measured = make_sampler(DEFAULT_SAMPLING | self.sampling).timesteps(self.schedule)[-1]
            if sampler.timesteps(self.schedule)[-1] != measured:
                given["final_covariance"] = None
        merged = self.sampling | given
        sampling = {key: value for key, value in merged.items() if value is not None}
        return replace(self, sampling=sampling)

    def flops_forward(self) -> int:
        """Count the operations of one call of the network; of experts, the most expensive one's."""
        return forward_flops(self.net)


def make_sampler(settings: Mapping[str, Any]) -> Sampler:
    """Make the sampler of complete sampling settings, by the keys of ``sampling.json``."""
    more = {key: settings[key] for key in SAMPLER_KEYS if key in settings}
    return Sampler(settings["sampler"], settings["steps"], **more)


def make_guidance(settings: Mapping[str, Any]) -> Guidance:
    """Make the guidance of complete sampling settings, by the keys of ``sampling.json``."""
    keys = {key: f"guidance_{key}" for key in GUIDANCE_KEYS}
    return guidance_of(**{key: settings[name] for key, name in keys.items() if name in settings})


@dataclass(frozen=True)
class GAN:
    """The trained generator of a GAN, in evaluation mode; the other attributes are a model's."""

    net: Generator
    data: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary = ICLEVR_LABELS
    split: Split | None = None

    def to(self, device: torch.device) -> "GAN":
        """Return the generator on a device; the network itself is moved."""
        return replace(self, net=nn.Module.to(self.net, device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return self.net.image_shape

    def pipeline(self, layout: str = CLEAR, **given: Any) -> GeneratorPipeline:
        """Create a pipeline; it has no settings.

        Raises:
            ValueError: A setting is given that only diffusion models have.
        """
        if any(value is not None for value in given.values()):
            raise ValueError(
                "these weights are a GAN's generator, which generates in one pass;"
                " leave out sampler and guidance"
            )
        refuse_layout(layout, takes_positions=False)
        return GeneratorPipeline(self.net, self.vocabulary)

    def flops_forward(self) -> int:
        """Count the operations of one call of the generator."""
        return flops(self.net, torch.zeros(1, self.net.latent), torch.zeros(1, self.net.num_labels))


def own_modules(model: Model | GAN) -> list[str]:
    """Return the modules, outside of this package, whose classes a model needs."""
    parts = [model.net] if isinstance(model, GAN) else [model.net, model.schedule, model.prediction]
    names = {type(part).__module__ for part in parts if not is_own_code(type(part))}
    return sorted(name for name in names if name.partition(".")[0] != "diffusers")
