"""Save the results of a training in its run folder: weights, images, ``summary.json``."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import lightning as L

from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.holdout import Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import weights_sum
from iclevr_diffusion.evaluation.image_grid import Strip, save_image
from iclevr_diffusion.evaluation.plots import curves_plot, schedule_plot
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import MetricsCSV, log_image, log_weights
from iclevr_diffusion.training.summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.files import SUMMARY
from iclevr_diffusion.utils.rng import image_generators
from iclevr_diffusion.utils.typed_json import read_dataclass, write_dataclass

STRIP_IMAGES = 4
EXAMPLE = "red cube, blue sphere"


def save_results(
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule | GANModule,
    datamodule: DataModule,
    scoring: Scoring,
    sampling: dict[str, Any],
    seconds: float,
    name: str,
    data: str,
) -> None:
    """Save weights, images and the summary of a finished training, and print them.

    Args:
        folder: The run folder.
        trainer: After the training.
        module: The trained module.
        datamodule: Its data.
        scoring: The callback that has kept the best checkpoint.
        sampling: The default sampling settings of the weights; empty for a GAN.
        seconds: The time that this process has trained for.
        name: The name of the run.
        data: The training data, in words.
    """
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    last = read_checkpoint(folder / "checkpoints" / LAST)
    model = publish(folder, sampling, datamodule.description(), datamodule.holdout_split())
    images = save_images(folder / "images", trainer, model, datamodule, scoring, csv)
    forward = model.flops_forward()
    quick = training_pipeline(scoring, model)
    summary = Summary(
        name=name,
        seed=module.seed,
        data=data,
        data_source=datamodule.description()["source"],
        steps=last["progress"]["steps"],
        images_seen=last["progress"]["frames_seen"],
        seconds=round(last["callbacks"]["Limits"]["time_elapsed"]["train"], 1),
        seconds_this_process=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in module.net.parameters()),
        flops_forward=forward,
        flops_per_training_image=module.flops_per_training_image(forward),
        network_calls=quick.network_calls(scoring.labels()),
        metrics={
            name: round(value, 6)
            for name, value in sorted(csv.latest().items())
            if math.isfinite(value)
        },
        evaluator=scoring.evaluator.name,
        machine=machine(trainer),
        versions=versions(),
        weights=PublishedWeights(
            sha256=weights_sum(folder / "weights"),
            chosen_by="accuracy + exact match on the validation conditions",
            epoch=best["progress"]["epoch"],
            step=best["progress"]["steps"],
            scores=best["callbacks"]["Scoring"]["best_scores"],
            sampled_with=str(quick),
            default_sampling=str(model.pipeline()),
            collapsed_lists=best["callbacks"]["Scoring"].get("collapsed_lists", []),
        ),
    )
    write_dataclass(folder / SUMMARY, summary)
    published = summary.weights
    described = [folder / "weights", folder / SUMMARY]
    log_weights(trainer.loggers, described, published.epoch, published.scores)
    grids = sorted((folder / "images").glob(f"sample_*_{best['progress']['epoch']:04d}.png"))
    is_iclevr = datamodule.vocabulary == ICLEVR_LABELS
    labels = EXAMPLE if is_iclevr else ", ".join(datamodule.vocabulary.names[:2])
    print_summary(summary, [*grids, *images, folder / "weights"], labels)


def score(folder: Path) -> float:
    """Return the score of a finished run, which a sweep shows and a search maximises.

    It is the accuracy of the weights on the validation list. A search by a test list would train
    on that.
    """
    summary = read_dataclass(Summary, folder / SUMMARY)
    return summary.weights.scores[f"score/{CHOOSE_BY}/accuracy"]


def publish(
    folder: Path, sampling: dict[str, Any], data: dict[str, Any], split: Split | None = None
) -> Model | GAN:
    """Save the averaged network of the best checkpoint as a weights folder."""
    best = load_model(folder / "checkpoints" / "best.ckpt")
    model = dataclasses.replace(best, data=data, split=split)
    if isinstance(model, Model):
        model = dataclasses.replace(model, sampling=sampling)
    save_model(model, folder / "weights")
    return model


def training_pipeline(scoring: Scoring, model: Model | GAN) -> Pipeline:
    """Return the pipeline that the scoring of a training uses."""
    if isinstance(model, GAN) or scoring.sampler is None or scoring.guidance is None:
        return model.pipeline()
    quick = scoring.sampler.description() | scoring.guidance.description()
    return dataclasses.replace(model, sampling=quick).pipeline(layout=scoring.layout)


def save_images(
    images: Path,
    trainer: L.Trainer,
    model: Model | GAN,
    datamodule: DataModule,
    scoring: Scoring,
    csv: MetricsCSV,
) -> list[Path]:
    """Save the denoising strip and the curves; for a diffusion model also its schedule."""
    model = model.to(trainer.strategy.root_device)
    strip = denoising_strip(training_pipeline(scoring, model), datamodule, model)
    image = strip.image()
    if isinstance(model, Model):
        name = str(model.schedule.config.get("name", type(model.schedule).__name__))
        save_image(schedule_plot({name: model.schedule}), images / "schedule.png")
    log_image(trainer.loggers, "sample/strip", image, trainer.global_step - 1)
    curves = curves_plot(csv.rows, f"classified by {scoring.evaluator.name}")
    return [save_image(image, images / "strip.png"), save_image(curves, images / "curves.png")]


def denoising_strip(pipeline: Pipeline, datamodule: DataModule, model: Model | GAN) -> Strip:
    """Return the denoising of a few conditions of the first list."""
    conditions = next(iter(datamodule.conditions().values()))
    chosen = conditions[:: max(1, len(conditions) // STRIP_IMAGES)][:STRIP_IMAGES]
    strip = Strip(pipeline.steps)
    generators = image_generators(0, range(len(chosen)), "strip")
    pipeline(datamodule.vocabulary.encode_all(chosen).to(model.device), generators, strip)
    return strip


def print_summary(summary: Summary, paths: list[Path], labels: str) -> None:
    """Print a summary, the saved files, and the command that samples with the weights."""
    weights = summary.weights
    losses = [
        f"{name} {value:.4f}"
        for name, value in summary.metrics.items()
        if name.startswith(("train/loss", "val/"))
    ]
    scores = [
        f"{name.split('/')[1]} {value:.4f}"
        for name, value in weights.scores.items()
        if name.endswith("/accuracy")
    ]
    print(f"\n{summary.name} on {summary.data} frames: {', '.join(losses)}")
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
        f" labels='{labels}'"
    )


def machine(trainer: L.Trainer) -> Machine:
    """Return the device, the number of processes and the precision of a run."""
    return Machine(
        device=device_name(trainer.strategy.root_device),
        processes=trainer.world_size,
        precision=trainer.precision,
    )
