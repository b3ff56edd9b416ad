"""The pipeline as a diffusers class.

It is a thin layer over :mod:`~iclevr_diffusion.diffusion.pipeline`. The commands use that module
directly, since importing ``diffusers.DiffusionPipeline`` takes longer than sampling: it pulls in
torch's compiler, torchvision and SciPy.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor, nn

from iclevr_diffusion.data.holdout import Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.data.negation import encode_all_signed
from iclevr_diffusion.diffusion.io import diffusers_scheduler, load_model, save_into
from iclevr_diffusion.diffusion.model_index import pipeline_settings
from iclevr_diffusion.diffusion.pipeline import refuse_nan
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.prompts import (
    Generators,
    Labels,
    Positions,
    generators_of,
    label_sets,
    positions_of,
)
from iclevr_diffusion.diffusion.samplers import EndSampling, OnStep, Step
from iclevr_diffusion.diffusion.schedule import DIFFUSERS_CLASS, schedule_from_config
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.utils.checks import check_choice
from iclevr_diffusion.utils.pixels import to_arrays
from iclevr_diffusion.utils.registry import CLASS_NAME
from iclevr_diffusion.utils.weights import convert

Callback = Callable[[DiffusionPipeline, int, int, dict[str, Any]], Mapping[str, Any] | None]
OUTPUT_TYPES = ("pil", "np", "pt")
DTYPES = (None, torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ICLEVRPipeline(DiffusionPipeline):
    """Generates images from labels, with the interface of a diffusers pipeline.

    Example:
        >>> pipe = ICLEVRPipeline.from_pretrained("pretrained")
        >>> pipe("red cube, blue sphere", generator=torch.Generator().manual_seed(0)).images[0]

    Args:
        unet: A :class:`~iclevr_diffusion.models.protocol.DenoisingNetwork`; None for a GAN.
        scheduler: The noise schedule and prediction type used in training. To choose the sampler,
            use ``sampling``.
        generator: A GAN's generator, instead of ``unet`` and ``scheduler``.
        sampling: Default sampling settings, as in ``sampling.json``.
        labels: Label names; None for i-CLEVR's.
        noise_schedule: Replaces ``scheduler`` for a schedule that diffusers does not have: the
            schedule and the prediction type, as plain values.
        data: Description of the training data.

    Attributes:
        vocabulary: The labels.
        split: Label sets held out of training; None if there are none.

    Raises:
        ValueError: There is no network, or a setting is out of range.
    """

    model_cpu_offload_seq = "unet"
    _optional_components = ("unet", "scheduler", "generator")
    _callback_tensor_inputs = ("latents", "pred_original_sample")

    def __init__(
        self,
        unet: nn.Module | None = None,
        scheduler: DDPMScheduler | None = None,
        generator: nn.Module | None = None,
        sampling: dict[str, Any] | None = None,
        labels: list[str] | None = None,
        noise_schedule: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, generator=generator)
        self.register_to_config(
            sampling=sampling, labels=labels, noise_schedule=noise_schedule, data=data
        )
        self._interrupt = False
        self.vocabulary = ICLEVR_LABELS if labels is None else Vocabulary(labels)
        self.split: Split | None = None
        self.model()  # raises if the components do not fit together

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "pretrained",
        *,
        dtype: torch.dtype | None = None,
        sampling: Mapping[str, Any] | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> "ICLEVRPipeline":
        """Load weights from safetensors and JSON; classes in ``model_index.json`` are not imported.

        Args:
            pretrained_model_name_or_path: As :func:`~.io.load_model`.
            dtype: Dtype of the network: float32, float16, bfloat16 or float64; None for float32.
            sampling: Sampling settings that replace stored ones.
            torch_dtype: The older name of ``dtype`` in diffusers.

        Raises:
            UserError: As :func:`~.io.load_model`, or the weights exceed the range of the dtype.
            ValueError: A setting is out of range, or is of a GAN, which has none.
        """
        dtype = dtype or torch_dtype
        if dtype not in DTYPES:
            names = ", ".join(str(known) for known in DTYPES if known)
            raise ValueError(f"dtype must be one of {names}, got {dtype!r}")
        model = load_model(pretrained_model_name_or_path)
        convert(model.net, dtype)
        components: dict[str, Any] = {"generator": model.net}
        if isinstance(model, GAN):
            model.pipeline(**(sampling or {}))  # refuses sampling settings
        else:
            model = model.with_sampling(sampling or {})
            scheduler = diffusers_scheduler(model.schedule, model.prediction.name)
            components = {"unet": model.net, "scheduler": scheduler}
        pipeline = cls(**components, **pipeline_settings(model))
        pipeline.split = model.split
        return pipeline

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> "ICLEVRPipeline":
        """Make a pipeline that shares the components of another one.

        Args:
            pipeline: The other pipeline.
            kwargs: As in diffusers: arguments of the constructor, instead of those of the other
                pipeline, and the dtype of the shared network, float32 by default.
        """
        # diffusers only hands on networks whose class a type hint of the constructor names.
        networks = {name: pipeline.components.get(name) for name in ("unet", "generator")}
        made: ICLEVRPipeline = super().from_pipe(pipeline, **(networks | kwargs))
        made.split = getattr(pipeline, "split", None)
        return made

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: None = None,  # push_to_hub() passes it
    ) -> None:
        """Write a weights folder, as :func:`~.io.save_model`, in the network's dtype.

        Other files in the folder are kept.

        Raises:
            ValueError: ``safe_serialization`` is false: pickles are never written; or a ``variant``
                is named: a folder holds one.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization must be true: weights are saved as safetensors")
        if variant is not None:
            raise ValueError(f"variant must be None: a folder holds one, got {variant!r:.60}")
        save_into(self.model(), Path(save_directory), self.dtype)

    def model(self) -> Model | GAN:
        """Return the network with its schedule and settings, as a class of :mod:`~.trained`."""
        data = dict(self.config.data or {})
        if isinstance(self.generator, Generator):
            return GAN(self.generator, data, self.vocabulary, self.split)
        if self.unet is None:
            raise ValueError("a pipeline needs a network: unet, or a GAN's generator")
        config = dict(self.config.noise_schedule or {})
        if self.scheduler is not None:
            if not isinstance(self.scheduler, DDPMScheduler):
                raise ValueError(
                    f"scheduler must be a {DIFFUSERS_CLASS}, got {type(self.scheduler).__name__};"
                    " choose the sampler with sampling={'sampler': …}"
                )
            config = {**self.scheduler.config, CLASS_NAME: DIFFUSERS_CLASS}
        if not config:
            raise ValueError("a pipeline needs a scheduler, or noise_schedule")
        prediction = find_prediction(config.pop("prediction_type"))
        schedule = schedule_from_config(config).to(self._execution_device)
        sampling = dict(self.config.sampling or {})
        return Model(self.unet, schedule, prediction, sampling, data, self.vocabulary, self.split)

    @property
    def interrupt(self) -> bool:
        """Whether to stop after this step; a callback may set ``pipe._interrupt = True``."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        labels: Labels,
        positions: Positions | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        layout: str = CLEAR,
        batch_size: int = 64,
        guidance_rescale: float | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            labels: The objects of one image, such as ``"red cube, blue sphere"``; or a list of N
                prompts, each a string or a list of names.
            positions: The position of each object, in the order of the labels: ``[[x, y], …]``, x
                to the right and y down, in [-1, 1]. For a list of prompts, a list with one such
                list each, or a tensor (N, L, 2), or (N, L, 4) with headings: x, y, and the cosine
                and sine of four times the heading, as
                :func:`~iclevr_diffusion.data.poses.encode_poses`; 0, 0 for objects without one.
                They are rounded as :meth:`.Layout.snap` says. If None, they are sampled.
            num_images_per_prompt: Images per prompt.
            num_inference_steps: Sampling steps; None for the default of the weights.
            guidance_scale: 1 is no guidance; None for the default of the weights.
            generator: A new generator gives the images of the ``sample`` command with its seed; a
                used one gives others. With a list of one generator per image, each gives the first
                image of its seed. If None, images are seeded from torch's global generator.
            output_type: ``pil``, ``np`` for (N, H, W, 3) or ``pt`` for (N, 3, H, W), in [0, 1].
            callback_on_step_end: Called after each step of each batch with this pipeline, the step,
                the timestep and a dict of tensors. It may return a dict with new ``latents``, and
                may set ``pipe._interrupt = True`` to stop sampling: the images are then the latents
                of this step. Each later batch stops after its first step.
            callback_on_step_end_tensor_inputs: Tensors to pass to the callback: ``latents`` (x_t)
                and ``pred_original_sample`` (the estimate of x_0).
            return_dict: Whether to return an output object instead of a tuple.
            layout: How to sample positions, ``clear`` or ``data``.
            batch_size: Images per network batch.
            guidance_rescale: As :attr:`.Guidance.rescale`; None for the default of the weights.

        Returns:
            An object with the images as ``.images``, in the order of the prompts; or a tuple.

        Raises:
            UserError: A label is unknown, positions do not fit, or the network generates NaN.
            ValueError: A setting is out of range.
        """
        self._check(
            num_images_per_prompt, batch_size, output_type, callback_on_step_end_tensor_inputs
        )
        model = self.model()
        sets = label_sets(labels, self.vocabulary)
        if self.dtype != torch.float32:
            model = dataclasses.replace(model, net=Float32IO(model.net))  # type: ignore[arg-type]
        pipeline = model.pipeline(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            layout=layout,
        )
        placed = positions_of(positions, labels, sets, pipeline)
        repeat = num_images_per_prompt
        rows = encode_all_signed(sets, self.vocabulary).repeat_interleave(repeat, 0)
        if placed is not None:
            placed = placed.repeat_interleave(repeat, 0)
        generators = generators_of(generator, len(rows))
        self._interrupt = False
        with self.progress_bar(total=pipeline.steps * -(-len(rows) // batch_size)) as bar:
            on_step = self._on_step(bar, callback_on_step_end, callback_on_step_end_tensor_inputs)
            device = self._execution_device
            images = pipeline(rows.to(device), generators, on_step, batch_size, placed)
        refuse_nan(images)
        self.maybe_free_model_hooks()
        result = _images(images, output_type)
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _check(
        self, repeat: int, batch_size: int, output_type: str, tensors: Sequence[str]
    ) -> None:
        for name, value in (("num_images_per_prompt", repeat), ("batch_size", batch_size)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value!r:.60}")
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if isinstance(tensors, str) or not isinstance(tensors, Sequence):
            raise ValueError(f"callback_on_step_end_tensor_inputs must be a list, got {tensors!r}")
        if unknown := set(tensors) - {*self._callback_tensor_inputs}:
            known = ", ".join(self._callback_tensor_inputs)
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: {sorted(unknown)} is not among {known}"
            )

    def _on_step(self, bar: Any, callback: Callback | None, tensors: Sequence[str]) -> OnStep:
        def on_step(step: Step) -> Tensor | None:
            bar.update()
            if callback is None:
                return None
            values = {"latents": step.x_t, "pred_original_sample": step.x0}
            shown = {name: values[name] for name in tensors}
            changed = callback(self, step.number, step.timestep, shown)
            if changed is not None and not isinstance(changed, Mapping):
                raise ValueError(
                    f"callback_on_step_end must return a dict or None, got {type(changed).__name__}"
                )
            latents: Tensor = (changed or {}).get("latents", step.x_t)
            if not isinstance(latents, Tensor) or latents.shape != step.x_t.shape:
                raise ValueError(
                    "callback_on_step_end must keep the shape of the latents,"
                    f" {tuple(step.x_t.shape)}"
                )
            latents = latents.to(step.x_t)
            if self.interrupt:
                raise EndSampling(latents)
            return latents

        return on_step


class Float32IO(nn.Module):
    """A network that is given float32 and returns float32, whatever the dtype of its weights.

    It is a denoising network or a GAN's generator, whose other attributes it has.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Call the network with its own dtype."""
        dtype = next(self.net.parameters()).dtype
        cast = [x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs]
        output: Tensor = self.net(*cast).float()
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)


def _images(images: Tensor, output_type: str) -> Any:
    """Convert images (N, C, H, W) in [-1, 1] to an output type."""
    if output_type == "pil":
        return [Image.fromarray(pixels) for pixels in to_arrays(images)]
    unit = images / 2 + 0.5
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()
