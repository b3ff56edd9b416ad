"""What a training leaves in its run folder: weights, images, figures."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from PIL import Image

from iclevr_diffusion.cli.validate import TARGET
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import LabelSet, encode_all
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import weights_sum
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.image_grid import Strip, save_image
from iclevr_diffusion.evaluation.plots import curves_plot, schedule_plot
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import MetricsCSV, log_image
from iclevr_diffusion.training.summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.files import SUMMARY
from iclevr_diffusion.utils.rng import image_generators
from iclevr_diffusion.utils.typed_json import write_dataclass

STRIP_IMAGES = 4


def save_results(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule | GANModule,
    datamodule: DataModule,
    evaluator: Evaluator,
    scoring: Scoring,
    sampling: dict[str, Any],
    seconds: float,
) -> None:
    """Leave the weights, the images and the figures in the run folder, and say where.

    Args:
        seconds: that this process trained for.
    """
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    kept = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    last = read_checkpoint(folder / "checkpoints" / LAST)
    model = publish(folder, sampling, datamodule.description())
    shown = next(iter(datamodule.conditions().values()))
    images = save_run_images(cfg, folder, trainer, model, shown, evaluator, scoring, csv)
    forward = model.flops_forward()
    summary = Summary(
        name=cfg.name,
        seed=cfg.seed,
        data=cfg.data.get("root") or datamodule.description()["source"],
        steps=last["progress"]["steps"],
        images_seen=last["progress"]["frames_seen"],
        seconds=round(last["callbacks"]["Limits"]["time_elapsed"]["train"], 1),
        seconds_this_process=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in module.net.parameters()),
        flops_forward=forward,
        flops_per_training_image=module.flops_per_training_image(forward),
        network_calls=training_pipeline(scoring, model).network_calls,
        metrics={
            name: round(value, 6)
            for name, value in sorted(csv.latest().items())
            if math.isfinite(value)
        },
        evaluator=evaluator.name,
        machine=machine(trainer),
        versions=versions(),
        weights=PublishedWeights(
            sha256=weights_sum(folder / "weights"),
            chosen_by="accuracy + exact match on the validation conditions",
            epoch=kept["progress"]["epoch"],
            step=kept["progress"]["steps"],
            scores=kept["callbacks"]["Scoring"]["best_scores"],
            sampled_with=str(training_pipeline(scoring, model)),
            default_sampling=str(model.pipeline()),
            collapsed_lists=kept["callbacks"]["Scoring"]["all_alike"],
        ),
    )
    write_dataclass(folder / SUMMARY, summary)
    grids = sorted((folder / "images").glob(f"sample_*_{kept['progress']['epoch']:04d}.png"))
    print_results(summary, [*grids, *images, folder / "weights"])


def publish(folder: Path, sampling: dict[str, Any], data: dict[str, Any]) -> Model | GAN:
    """Write the averaged network of the best checkpoint as weights, with how its author draws."""
    model = dataclasses.replace(load_model(folder / "checkpoints" / "best.ckpt"), data=data)
    if isinstance(model, Model):
        model = dataclasses.replace(model, sampling=sampling)
    save_model(model, folder / "weights")
    return model


def training_pipeline(scoring: Scoring, model: Model | GAN) -> Pipeline:
    """How a model samples during its training: quickly."""
    if isinstance(model, GAN) or scoring.sampler is None or scoring.guidance is None:
        return model.pipeline()
    quick = scoring.sampler.description() | scoring.guidance.description()
    return dataclasses.replace(model, sampling=quick).pipeline(layout=scoring.layout)


def save_run_images(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    model: Model | GAN,
    conditions: Sequence[LabelSet],
    evaluator: Evaluator,
    scoring: Scoring,
    csv: MetricsCSV,
) -> list[Path]:
    """Draw the strip and plot the curves; for a diffusion model also its schedule."""
    images = folder / "images"
    model = model.to(trainer.strategy.root_device)
    strip = denoising_strip(training_pipeline(scoring, model), conditions, model)
    if isinstance(model, Model):
        save_image(schedule_plot({schedule_name(cfg): model.schedule}), images / "schedule.png")
    log_image(trainer.loggers, "sample/strip", strip, trainer.global_step - 1)
    curves = curves_plot(csv.rows, f"read by {evaluator.name}")
    return [
        save_image(strip, images / "strip.png"),
        save_image(curves, images / "curves.png"),
    ]


def denoising_strip(
    pipeline: Pipeline, conditions: Sequence[LabelSet], model: Model | GAN
) -> Image.Image:
    """The denoising of a few of the conditions, as an image."""
    chosen = conditions[:: max(1, len(conditions) // STRIP_IMAGES)][:STRIP_IMAGES]
    strip = Strip(pipeline.steps)
    generators = image_generators(0, range(len(chosen)), "strip")
    pipeline(encode_all(chosen).to(model.device), generators, strip)
    return strip.image()


def print_results(summary: Summary, paths: list[Path]) -> None:
    weights = summary.weights
    numbers = [
        f"{name} {value:.4f}"
        for name, value in summary.metrics.items()
        if name.startswith(("train/loss", "val/"))
    ]
    scores = [
        f"{name.split('/')[1]} {value:.4f}"
        for name, value in weights.scores.items()
        if name.endswith("/accuracy")
    ]
    print(f"\n{summary.name} on {summary.data} frames: {', '.join(numbers)}")
    print(
        f"accuracy of the weights, of epoch {weights.epoch}: {', '.join(scores)}"
        f" (one seed, {weights.sampled_with}, evaluator: {summary.evaluator})"
    )
    if weights.collapsed_lists:
        print("the network has collapsed: it generates the same image for all labels")
    print(
        f"{summary.images_seen:,} frames, {summary.seconds:.0f} s,"
        f" {summary.parameters / 1e6:.1f} M parameters, {summary.machine.device}"
    )
    for path in paths:
        print(f"  {os.path.relpath(path)}")
    print(
        f"sample: python -m iclevr_diffusion.sample weights={os.path.relpath(paths[-1].parent)}"
        " labels='red cube, blue sphere'"
    )


def schedule_name(cfg: DictConfig) -> str:
    """The name of the noise schedule in a figure."""
    return str(cfg.schedule.get("name", cfg.schedule[TARGET].rpartition(".")[2]))


def machine(trainer: L.Trainer) -> Machine:
    """The device, the number of processes and the precision of a run."""
    return Machine(
        device=device_name(trainer.strategy.root_device),
        processes=trainer.world_size,
        precision=trainer.precision,
    )
