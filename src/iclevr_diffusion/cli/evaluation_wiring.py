"""From a composed config to the objects of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from iclevr_diffusion.cli.command import refuse_several
from iclevr_diffusion.cli.instantiate import instantiate
from iclevr_diffusion.cli.output_dir import refuse_overwriting
from iclevr_diffusion.cli.overrides import overridden
from iclevr_diffusion.cli.run_facts import run_facts
from iclevr_diffusion.cli.sampling import SEVERAL, several
from iclevr_diffusion.cli.wandb_reopen import wandb_run_of
from iclevr_diffusion.data.adapters import as_source
from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import weights_name, weights_sum
from iclevr_diffusion.evaluation.classifier import (
    Evaluator,
    check_vocabulary,
    second_evaluator,
)
from iclevr_diffusion.evaluation.evaluation_report import frames_text
from iclevr_diffusion.evaluation.lists import find_lists
from iclevr_diffusion.evaluation.model_card import network_facts
from iclevr_diffusion.evaluation.results import Evaluation
from iclevr_diffusion.evaluation.run_evaluation import (
    EvaluationProtocol,
    evaluate,
    reference_features,
)
from iclevr_diffusion.utils.checks import check_range
from iclevr_diffusion.utils.environment import choose_device, device_name, versions
from iclevr_diffusion.utils.errors import UserError

# Settings, and groups of them, that given images do not have.
SAMPLING = (
    *("weights", "ema_length", "layout", "seeds", "sampler", "guidance"),
    *("fidelity", "course", "wandb_run", "sweep"),
)
MAX_COUNT = 1_000_000  # of seeds, of images at once, of frames to compare with


@dataclass(frozen=True)
class Inputs:
    """The inputs of an evaluation besides the images.

    Attributes:
        evaluator: The evaluator that scores the images.
        second: The second evaluator; None if it does not know the labels.
        source: Frames to compare with; None for none.
        lists: Condition lists by name.
        origins: The origin of each list, in words.
        device: Where to classify.
    """

    evaluator: Evaluator
    second: Evaluator | None
    source: Source | None
    lists: dict[str, list[LabelSet]]
    origins: dict[str, str]
    device: torch.device


def check_request(cfg: DictConfig) -> None:
    """Check the settings that need nothing loaded.

    Raises:
        ValueError: A number is out of range.
        UserError: There are several jobs, or ``out`` holds files.
    """
    refuse_several("give it lists, such as 'sampler.steps=[5,10]'")
    for name, least in (("seeds", 1), ("batch_size", 1), ("reference_frames", 0)):
        check_range(name, cfg[name], least, MAX_COUNT)
    refuse_overwriting(cfg.out, in_run="evaluation")


def load_inputs(cfg: DictConfig, model: Model | GAN | None = None) -> Inputs:
    """Load what an evaluation needs besides the images.

    Given images, without a model, have the evaluator's labels.

    Raises:
        UserError: A setting is wrong, or a file is missing or damaged.
    """
    evaluator: Evaluator = instantiate(cfg.evaluator, "evaluator")
    if model is not None:
        check_vocabulary(evaluator, model.vocabulary, "these weights")
    vocabulary = evaluator.vocabulary
    source = build_source(cfg, model)
    if source is not None:
        source.sequences()  # which checks the data
    trained_on, split = ({}, None) if model is None else (model.data, model.split)
    lists, origins = find_lists(several(cfg.lists), source, trained_on, vocabulary, split)
    device = choose_device(cfg.device)
    return Inputs(evaluator, second_evaluator(vocabulary), source, lists, origins, device)


def make_protocol(cfg: DictConfig, inputs: Inputs, seeds: int, **more: Any) -> EvaluationProtocol:
    """Return the way to evaluate, with the evaluators on their device."""
    evaluator, second = inputs.evaluator.to(inputs.device), inputs.second
    return EvaluationProtocol(
        inputs.lists,
        evaluator,
        None if second is None else second.to(inputs.device),
        seeds,
        cfg.batch_size,
        reference_features(cfg.reference_frames, inputs.source, evaluator),
        **more,
    )


def build_source(cfg: DictConfig, model: Model | GAN | None) -> Source | None:
    """Return the frames to compare with: those that are asked for, else those of the training.

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
    if model is None or known.get("source") != "synthetic":
        return None
    sequences, seed = known.get("sequences"), known.get("seed")
    if type(sequences) is not int or type(seed) is not int:
        return None
    return Synthetic(sequences, seed, model.image_shape[1], cfg.paths.cache)


def refuse_sampling_settings() -> None:
    """Refuse settings of the command line that do not apply to given images.

    Raises:
        UserError: There is one.
    """
    for name in overridden():
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


def describe(protocol: EvaluationProtocol, inputs: Inputs, **of_images: Any) -> Evaluation:
    """Return an evaluation without results.

    Args:
        protocol, inputs: Those of the evaluation.
        of_images: Where the images are from: :func:`describe_weights`, or fields of
            :class:`~.results.Evaluation` for given images.
    """
    known = inputs.source.description() if inputs.source is not None else {}
    second, reference = protocol.second, protocol.reference
    return Evaluation(
        evaluator=protocol.evaluator.name,
        second_evaluator=None if second is None else second.name,
        lists=inputs.origins,
        seeds=protocol.seeds,
        reference=None if reference is None else {**known, "frames": len(reference)},
        machine=device_name(protocol.evaluator.device),
        versions=versions(),
        settings=[],
        **of_images,
    )


def describe_weights(cfg: DictConfig, weights: Path, model: Model | GAN) -> dict[str, Any]:
    """Return what ``evaluation.json`` says of weights.

    Weights that are averaged anew have no checksum: no file holds them.
    """
    return {
        "weights": weights_name(weights),
        "weights_sha256": weights_sum(weights) if cfg.ema_length is None else "",
        "trained_on": model.data,
    }


def evaluate_and_log(
    pipelines: Sequence[Pipeline],
    protocol: EvaluationProtocol,
    evaluation: Evaluation,
    out: Path,
    wandb_folder: Path | None,
) -> None:
    """Evaluate pipelines, and log the results to the W&B run of a run folder, if one is given.

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
