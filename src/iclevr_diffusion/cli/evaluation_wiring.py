"""From a composed config to the objects of an evaluation."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from iclevr_diffusion.cli.instantiate import instantiate, plain
from iclevr_diffusion.cli.overrides import overrides
from iclevr_diffusion.cli.run_facts import run_facts
from iclevr_diffusion.cli.sampling import build_pipeline
from iclevr_diffusion.cli.wandb_run import wandb_run_of
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.data.source import as_source
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import weights_name, weights_sum
from iclevr_diffusion.evaluation.evaluation_report import frames_text
from iclevr_diffusion.evaluation.model_card import network_facts
from iclevr_diffusion.evaluation.results import Evaluation
from iclevr_diffusion.evaluation.run_evaluation import Protocol, evaluate
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.errors import UserError

SEVERAL = "ema_length, sampler.name, sampler.steps, guidance.mode and guidance.scale"
# Settings, and groups of them, that given images do not have.
SAMPLING = (
    *("weights", "ema_length", "layout", "seeds", "sampler", "guidance"),
    *("fidelity", "course", "wandb_run", "sweep"),
)
MAX_COUNT = 1_000_000  # of seeds, of images at once, of frames to compare with


def check_counts(cfg: DictConfig) -> None:
    """Refuse numbers that are out of range.

    Raises:
        UserError: A number is out of range.
    """
    for name, least in (("seeds", 1), ("batch_size", 1), ("reference_frames", 0)):
        if not least <= cfg[name] <= MAX_COUNT:
            raise UserError(f"{name} must be in {least}..{MAX_COUNT}, got {cfg[name]}")


def build_pipelines(
    cfg: DictConfig, models: Sequence[tuple[float | None, Model | GAN]]
) -> list[Pipeline]:
    """Return a pipeline for each requested combination of model, sampler, steps and guidance.

    Args:
        cfg: The settings.
        models: The lengths of averages, and the weights with each.

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
        raise UserError(f"{SEVERAL} need a value each")
    if len({pipeline.folder for pipeline in result}) < len(result):
        raise UserError(f"one of {SEVERAL} names a value twice")
    return result


def several(value: Any) -> list[Any]:
    """Return the items of a list; any other value alone."""
    return list(value) if isinstance(value, ListConfig) else [value]


def build_source(cfg: DictConfig, model: Model | GAN | None) -> Source | None:
    """Return the frames to compare with: those that are asked for, else those of the training.

    Args:
        cfg: The settings.
        model: The trained network; None for given images.

    Raises:
        UserError: ``data.holdout`` is set, which only a training takes.
    """
    data = cfg.data
    if data.get("holdout") is not None:
        raise UserError("data.holdout is read from the weights; leave it out")
    if data.get("root") is not None or data.get("source") != "auto":
        if "image_size" in data and model is not None:
            data.image_size = model.image_shape[1]  # so that the frames compare
        return as_source(instantiate(data, "data", cache=cfg.paths.cache))
    known = {} if model is None else model.data
    if (
        model is not None
        and known.get("source") == "synthetic"
        and {"sequences", "seed"} <= known.keys()
    ):
        return Synthetic(known["sequences"], known["seed"], model.image_shape[1], cfg.paths.cache)
    return None


def refuse_sampling_settings() -> None:
    """Refuse settings of the command line that do not apply to given images.

    Raises:
        UserError: There is one.
    """
    words = (word.lstrip("+~") for word in overrides())
    for name in (word.split("=")[0] for word in words):
        if name.split(".")[0] in SAMPLING:
            raise UserError(f"images=… are scored as they are: leave {name} out")


def check_course(cfg: DictConfig, pipelines: Sequence[Pipeline]) -> None:
    """Refuse the course's report for several settings, or for other labels than the course's.

    Raises:
        UserError: It cannot be written.
    """
    if not cfg.course:
        return
    if len(pipelines) > 1:
        raise UserError(f"course=true reports one setting: give one value each to {SEVERAL}")
    if pipelines[0].vocabulary != ICLEVR_LABELS:
        raise UserError("course=true needs weights for the labels of i-CLEVR")


def course_facts(model: Model | GAN, weights: Path, pipeline: Pipeline) -> dict[str, str]:
    """Return what the course's report says of the weights, and of the pipeline that uses them."""
    facts = {"weights": f"`{weights_name(weights)}`"} | run_facts(weights)
    facts["data"] = frames_text(model.data)
    return facts | network_facts(model) | {"samples with": str(pipeline)}


def describe(
    protocol: Protocol,
    origins: Mapping[str, str],
    source: Source | None,
    weights: Path | None = None,
    model: Model | GAN | None = None,
    averaged_anew: bool = False,
    images: str | None = None,
) -> Evaluation:
    """Start the results of an evaluation of weights or of given images, without any yet.

    Weights that are averaged anew have no checksum: no file holds them.
    """
    checksum = "" if weights is None or averaged_anew else weights_sum(weights)
    known = source.description() if source is not None else {}
    second, reference = protocol.second, protocol.reference
    return Evaluation(
        weights="" if weights is None else weights_name(weights),
        weights_sha256=checksum,
        trained_on={} if model is None else model.data,
        evaluator=protocol.evaluator.name,
        second_evaluator=None if second is None else second.name,
        lists=dict(origins),
        seeds=protocol.seeds,
        reference=None if reference is None else {**known, "frames": len(reference)},
        machine=device_name(protocol.evaluator.device),
        versions=versions(),
        images=images,
        settings=[],
    )


def evaluate_and_log(
    pipelines: Sequence[Pipeline],
    protocol: Protocol,
    evaluation: Evaluation,
    out: Path,
    wandb_folder: Path | None,
) -> None:
    """Evaluate pipelines, and log the results to the W&B run of a run folder, if one is given.

    Args:
        pipelines, protocol, evaluation, out: as :func:`~.run_evaluation.evaluate`.
        wandb_folder: of :func:`find_wandb_run`.

    Raises:
        UserError: W&B cannot start.
    """
    if wandb_folder is None:
        evaluate(pipelines, protocol, evaluation, out)
        return
    from iclevr_diffusion.training.loggers.wandb_evaluation import log_evaluation, log_list_scores

    with wandb_run_of(wandb_folder) as run:
        images = evaluate(pipelines, protocol, evaluation, out, partial(log_list_scores, run))
        log_evaluation(run, evaluation, images, out)
