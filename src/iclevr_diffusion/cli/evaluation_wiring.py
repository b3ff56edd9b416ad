"""From a composed config to the objects of an evaluation."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from iclevr_diffusion.cli.instantiate import instantiate, plain
from iclevr_diffusion.cli.sampling import build_pipeline
from iclevr_diffusion.data.source import as_source
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import weights_name, weights_sum
from iclevr_diffusion.evaluation.results import Evaluation
from iclevr_diffusion.evaluation.run_evaluation import Protocol
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.errors import UserError

SEVERAL = "sampler.name, sampler.steps, guidance.mode and guidance.scale"
MAX_COUNT = 1_000_000  # of seeds, of images at once, of frames to compare with


def check_counts(cfg: DictConfig) -> None:
    """Refuse numbers that are out of range.

    Raises:
        UserError: A number is out of range.
    """
    for name, least in (("seeds", 1), ("batch_size", 1), ("reference_frames", 0)):
        if not least <= cfg[name] <= MAX_COUNT:
            raise UserError(f"{name} must be in {least}..{MAX_COUNT}, got {cfg[name]}")


def build_pipelines(cfg: DictConfig, model: Model | GAN) -> list[Pipeline]:
    """Return a pipeline for each requested combination of sampler, steps and guidance.

    Raises:
        UserError: One of them is out of range or named twice, or there is none.
    """
    result: list[Pipeline] = []
    for name, steps, mode, scale in itertools.product(
        several(cfg.sampler.name),
        several(cfg.sampler.steps),
        several(cfg.guidance.mode),
        several(cfg.guidance.scale),
    ):
        sampler = plain(cfg.sampler) | {"name": name, "steps": steps}
        guidance = plain(cfg.guidance) | {"mode": mode, "scale": scale}
        result.append(build_pipeline(model, sampler, guidance, cfg.layout))
    if not result:
        raise UserError(f"{SEVERAL} need a value each")
    if len({pipeline.folder for pipeline in result}) < len(result):
        raise UserError(f"one of {SEVERAL} names a value twice")
    return result


def several(value: Any) -> list[Any]:
    """Return the items of a list; any other value alone."""
    return list(value) if isinstance(value, ListConfig) else [value]


def build_source(cfg: DictConfig, model: Model | GAN) -> Source | None:
    """Return the frames to compare with: those that are asked for, else those of the training.

    Raises:
        UserError: ``data.holdout`` is set, which only a training takes.
    """
    data = cfg.data
    if data.get("holdout") is not None:
        raise UserError("data.holdout is read from the weights; leave it out")
    if data.get("root") is not None or data.get("source") != "auto":
        if "image_size" in data:
            data.image_size = model.image_shape[1]  # so that the frames compare
        return as_source(instantiate(data, "data", cache=cfg.paths.cache))
    known = model.data
    if known.get("source") == "synthetic" and {"sequences", "seed"} <= known.keys():
        return Synthetic(known["sequences"], known["seed"], model.image_shape[1], cfg.paths.cache)
    return None


def describe(
    weights: Path,
    model: Model | GAN,
    protocol: Protocol,
    origins: Mapping[str, str],
    source: Source | None,
) -> Evaluation:
    """Start the results of an evaluation, without any yet."""
    known = source.description() if source is not None else {}
    second, reference = protocol.second, protocol.reference
    return Evaluation(
        weights=weights_name(weights),
        weights_sha256=weights_sum(weights),
        trained_on=model.data,
        evaluator=protocol.evaluator.name,
        second_evaluator=None if second is None else second.name,
        lists=dict(origins),
        seeds=protocol.seeds,
        reference=None if reference is None else {**known, "frames": len(reference)},
        machine=device_name(model.device),
        versions=versions(),
        settings=[],
    )
