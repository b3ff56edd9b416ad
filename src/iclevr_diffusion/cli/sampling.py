"""From the sampling settings of a command to pipelines."""

import itertools
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

from iclevr_diffusion.cli.instantiate import named, plain
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import (
    DEFAULT_SAMPLING,
    GAN,
    GUIDANCE_KEYS,
    SAMPLER_KEYS,
    Model,
    make_guidance,
    make_sampler,
)
from iclevr_diffusion.utils.errors import UserError

SEVERAL = "ema_length, sampler.name, sampler.steps, guidance.mode and guidance.scale"
PIPELINE = {"steps": "sampler.steps", "layout": "layout"}  # a pipeline's arguments, as settings


def build_pipeline(
    model: Model | GAN, sampler: dict[str, Any], guidance: dict[str, Any], layout: str
) -> Pipeline:
    """Build a pipeline with the settings stored with the weights, except for those that are given.

    Raises:
        UserError: A setting is out of range, or these weights do not support it.
    """
    # By the keys of sampling.json.
    settings = {("sampler" if name == "name" else name): sampler[name] for name in sampler}
    settings |= {f"guidance_{name}": value for name, value in guidance.items()}
    if isinstance(model, Model):
        given = {key: value for key, value in settings.items() if value is not None}
        check_sampling(DEFAULT_SAMPLING | model.sampling | given)
    with named("", PIPELINE):
        return model.pipeline(**settings, layout=layout)


def check_sampling(settings: dict[str, Any]) -> None:
    """Check complete sampling settings by themselves, so that an error names the setting."""
    with named("sampler", {name: f"sampler.{name}" for name in ("name", "steps", *SAMPLER_KEYS)}):
        make_sampler(settings)
    with named("guidance", {name: f"guidance.{name}" for name in GUIDANCE_KEYS}):
        make_guidance(settings)


def pipeline_of(model: Model | GAN, cfg: DictConfig) -> Pipeline:
    """Return the pipeline that a command's ``sampler``, ``guidance`` and ``layout`` ask for."""
    return build_pipeline(model, plain(cfg.sampler), plain(cfg.guidance), cfg.layout)


def build_pipelines(
    cfg: DictConfig, models: Sequence[tuple[float | None, Model | GAN]]
) -> list[Pipeline]:
    """Return a pipeline for each requested combination of model, sampler, steps and guidance.

    Each of the models comes with the length of its average.

    Raises:
        UserError: One of them is out of range or named twice, or there is none.
    """
    result: list[Pipeline] = []
    for (length, model), name, steps, mode, scale in itertools.product(
        models,
        several(cfg.sampler.name),
        several(cfg.sampler.steps),
        several(cfg.guidance.mode),
        several(cfg.guidance.scale),
    ):
        sampler = plain(cfg.sampler) | {"name": name, "steps": steps}
        guidance = plain(cfg.guidance) | {"mode": mode, "scale": scale}
        result.append(build_pipeline(model, sampler, guidance, cfg.layout))
        result[-1].ema_length = length
    if not result:
        raise UserError(f"each of {SEVERAL} needs a value")
    if len({pipeline.folder for pipeline in result}) < len(result):
        raise UserError(f"one of {SEVERAL} names a value twice")
    return result


def several(value: Any) -> list[Any]:
    """Return the items of a list; any other value alone."""
    return list(value) if isinstance(value, ListConfig) else [value]
