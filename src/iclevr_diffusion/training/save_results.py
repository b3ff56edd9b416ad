"""Save the results of a training in its run folder: weights, images, ``summary.json``."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.final_noise import measure_covariance
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.run_summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.diffusion.trained import GAN, Model, own_modules
from iclevr_diffusion.diffusion.weights_path import weights_sum
from iclevr_diffusion.evaluation.image_grid import Strip, save_image
from iclevr_diffusion.evaluation.plots import curves_plot, schedule_plot
from iclevr_diffusion.training.callbacks.checkpoint import BEST, LAST
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import MetricsCSV, log_image, log_weights
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.files import SUMMARY
from iclevr_diffusion.utils.rng import image_generators
from iclevr_diffusion.utils.text import in_shell
from iclevr_diffusion.utils.typed_json import read_dataclass, write_dataclass
from iclevr_diffusion.utils.weights import count_parameters

STRIP_IMAGES = 4
EXAMPLE = "red cube, blue sphere"


@dataclass(frozen=True)
class FinishedRun:
    """A run after its training, in which the scoring has kept the best checkpoint."""

    folder: Path
    trainer: L.Trainer
    module: DiffusionModule | GANModule
    datamodule: DataModule
    scoring: Scoring

    @property
    def metrics(self) -> MetricsCSV:
        """The logger that every run has."""
        return next(logger for logger in self.trainer.loggers if isinstance(logger, MetricsCSV))


def save_results(
    run: FinishedRun, sampling: dict[str, Any], seconds: float, name: str, data: str
) -> None:
    """Save weights, images and the summary of a finished training, and print them.

    Args:
        run: The run.
        sampling: The default sampling settings of the weights; empty for a GAN.
        seconds: The time that this process has trained for.
        name: The name of the run.
        data: The training data, in words.
    """
    folder, datamodule = run.folder, run.datamodule
    best, last = (read_checkpoint(folder / "checkpoints" / name) for name in (BEST, LAST))
    model = publish(run, sampling)
    model = model.to(run.trainer.strategy.root_device)
    pipeline = training_pipeline(run.scoring, model)
    images = save_images(run, model, pipeline, last["progress"]["steps"])
    weights = published_weights(run, model, pipeline, best)
    summary = summarize(run, model, pipeline, weights, last, seconds, name, data)
    write_dataclass(folder / SUMMARY, summary)
    described = [folder / "weights", folder / SUMMARY]
    log_weights(run.trainer.loggers, described, weights.epoch, weights.scores)
    grids = sorted((folder / "images").glob(f"sample_*_{weights.epoch:04d}.png"))
    is_iclevr = datamodule.vocabulary == ICLEVR_LABELS
    labels = EXAMPLE if is_iclevr else ", ".join(datamodule.vocabulary.names[:2])
    print_summary(summary, [*grids, *images, folder / "weights"], labels, own_modules(model))


def published_weights(
    run: FinishedRun, model: Model | GAN, pipeline: Pipeline, best: dict[str, Any]
) -> PublishedWeights:
    """Describe the published weights, which are those of the checkpoint ``best``."""
    scoring = best["callbacks"]["Scoring"]
    return PublishedWeights(
        sha256=weights_sum(run.folder / "weights"),
        chosen_by="accuracy + exact match on the validation conditions",
        epoch=best["progress"]["epoch"],
        step=best["progress"]["steps"],
        scores=scoring["best_scores"],
        sampled_with=str(pipeline),
        default_sampling=str(model.pipeline()),
        collapsed_lists=scoring.get("collapsed_lists", []),
        max_conditions=run.scoring.max_conditions,
    )


def summarize(
    run: FinishedRun,
    model: Model | GAN,
    pipeline: Pipeline,
    weights: PublishedWeights,
    last: dict[str, Any],
    seconds: float,
    name: str,
    data: str,
) -> Summary:
    """Return the content of ``summary.json``; ``last`` is the last checkpoint."""
    forward = model.flops_forward()
    latest = sorted(run.metrics.latest().items())
    return Summary(
        name=name,
        seed=run.module.seed,
        data=data,
        data_source=run.datamodule.description()["source"],
        steps=last["progress"]["steps"],
        images_seen=last["progress"]["frames_seen"],
        seconds=round(last["callbacks"]["Limits"]["time_elapsed"]["train"], 1),
        seconds_this_process=round(seconds, 1),
        parameters=count_parameters(run.module.net),
        flops_forward=forward,
        flops_per_training_image=run.module.flops_per_training_image(forward),
        network_calls=pipeline.network_calls(run.scoring.labels()),
        metrics={key: round(value, 6) for key, value in latest if math.isfinite(value)},
        evaluator=run.scoring.evaluator.name,
        machine=machine(run.trainer),
        versions=versions(),
        weights=weights,
    )


def score(folder: Path) -> float:
    """Return the score of a finished run, which a sweep shows and a search maximizes.

    It is the accuracy of the weights on the validation list. A search by a test list would train
    on that.
    """
    summary = read_dataclass(Summary, folder / SUMMARY)
    return summary.weights.scores[f"score/{CHOOSE_BY}/accuracy"]


def publish(run: FinishedRun, sampling: dict[str, Any]) -> Model | GAN:
    """Save the averaged network of the best checkpoint as a weights folder."""
    best = load_model(run.folder / "checkpoints" / BEST)
    data, split = run.datamodule.description(), run.datamodule.holdout_split()
    model = dataclasses.replace(best, data=data, split=split)
    if isinstance(model, Model):
        model = dataclasses.replace(model, sampling=sampling)
        if sampling.get("final_noise"):
            model = with_final_covariance(model, run.datamodule)
    save_model(model, run.folder / "weights")
    return model


def with_final_covariance(model: Model, datamodule: DataModule) -> Model:
    """Measure the covariance of the final noise, on validation frames if there are any."""
    if not datamodule.is_set_up:  # the training itself was finished before
        datamodule.setup("fit")
    rows = datamodule.frames_to_measure()
    frames, positions = datamodule.frames, datamodule.positions
    pipeline = model.to(frames.images.device).pipeline()
    covariance = measure_covariance(
        pipeline.denoiser,
        pipeline.timesteps[-1],
        frames.images[rows],
        frames.labels[rows],
        None if positions is None else positions[rows],
    )
    return dataclasses.replace(model, sampling=model.sampling | {"final_covariance": covariance})


def training_pipeline(scoring: Scoring, model: Model | GAN) -> Pipeline:
    """Return the pipeline that the scoring of a training uses."""
    if isinstance(model, GAN) or scoring.sampler is None or scoring.guidance is None:
        return model.pipeline()
    quick = scoring.sampler.description() | scoring.guidance.description()
    return dataclasses.replace(model, sampling=quick).pipeline(layout=scoring.layout)


def save_images(run: FinishedRun, model: Model | GAN, pipeline: Pipeline, steps: int) -> list[Path]:
    """Save the denoising strip and the curves; for a diffusion model also its schedule."""
    images, loggers = run.folder / "images", run.trainer.loggers
    strip = denoising_strip(pipeline, run.datamodule).image()
    if isinstance(model, Model):
        name = str(model.schedule.config.get("name", type(model.schedule).__name__))
        save_image(schedule_plot({name: model.schedule}), images / "schedule.png")
    log_image(loggers, "sample/strip", strip, steps - 1)
    curves = curves_plot(run.metrics.rows, f"classified by {run.scoring.evaluator.name}")
    return [save_image(strip, images / "strip.png"), save_image(curves, images / "curves.png")]


def denoising_strip(pipeline: Pipeline, datamodule: DataModule) -> Strip:
    """Return the denoising of a few conditions of the first list."""
    conditions = next(iter(datamodule.conditions().values()))
    chosen = conditions[:: max(1, len(conditions) // STRIP_IMAGES)][:STRIP_IMAGES]
    strip = Strip(pipeline.steps)
    generators = image_generators(0, range(len(chosen)), "strip")
    pipeline(datamodule.vocabulary.encode_all(chosen).to(pipeline.device), generators, strip)
    return strip


def print_summary(
    summary: Summary, paths: list[Path], labels: str, plugins: Sequence[str] = ()
) -> None:
    """Print a summary, the saved files, and the command that samples with the weights.

    Args:
        summary: The summary.
        paths: The saved files, the folder of the weights last.
        labels: Labels for the command.
        plugins: Modules that the weights need.
    """
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
    print(f"\n{summary.name} on {summary.data} frames: {', '.join(losses) or 'no loss was logged'}")
    how = ["one seed", weights.sampled_with, f"evaluator: {summary.evaluator}"]
    if weights.max_conditions is not None:
        how.insert(1, f"at most {weights.max_conditions} conditions of each list")
    print(
        f"accuracy of the weights of epoch {weights.epoch}: {', '.join(scores)} ({', '.join(how)})"
    )
    if weights.collapsed_lists:
        print("the network has collapsed: it generates the same image for all labels")
    print(
        f"{summary.images_seen:,} frames, {summary.seconds:.0f} s,"
        f" {summary.parameters / 1e6:.1f} M parameters, {summary.machine.device}"
    )
    for path in paths:
        print(f"  {os.path.relpath(path)}")
    run = in_shell(os.path.relpath(paths[-1].parent))
    more = f" 'plugins=[{','.join(plugins)}]'" if plugins else ""
    print(
        f"sample: python -m iclevr_diffusion.sample weights={run} labels={in_shell(labels)}{more}"
    )


def machine(trainer: L.Trainer) -> Machine:
    """Return the device, the number of processes and the precision of a run."""
    return Machine(
        device=device_name(trainer.strategy.root_device),
        processes=trainer.world_size,
        precision=trainer.precision,
    )
