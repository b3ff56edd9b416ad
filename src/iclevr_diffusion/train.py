"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from PIL import Image

from iclevr_diffusion import build
from iclevr_diffusion.callbacks.checkpoint import LAST
from iclevr_diffusion.callbacks.scoring import CHOOSE_BY
from iclevr_diffusion.data.conditions import packaged_conditions
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, sample
from iclevr_diffusion.door import (
    door,
    goes_on,
    refuse_sweep_over_devices,
    run_folder,
    user_settings,
)
from iclevr_diffusion.export import Model, load_model, read_checkpoint, save_model
from iclevr_diffusion.files import write_text
from iclevr_diffusion.fitting import find_checkpoint, fit
from iclevr_diffusion.labels import LabelSet, encode_all
from iclevr_diffusion.loggers import MetricsCSV, log_picture
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.nets.evaluator import Evaluator, load_evaluator
from iclevr_diffusion.pictures import Strip, save_picture
from iclevr_diffusion.plots import curves_plot, schedule_plot
from iclevr_diffusion.rng import image_generators
from iclevr_diffusion.settings import Train

STRIP_PICTURES = 4
SUMMARY = "summary.json"


@door("train", Train)
def main(cfg: DictConfig) -> float | None:
    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        datamodule = build.datamodule(cfg)
        module = build.module(cfg)
        evaluator = load_evaluator(cfg.evaluator.checkpoint)
        Sampler(**build.plain(cfg.sampler)).scheduler(module.schedule)
        Denoiser(module.net, module.schedule, module.objective.prediction, cfg.guidance.scale)
        settings = build.run_settings(cfg, module, datamodule.identity()) | {
            "min_snr_gamma": cfg.prediction.min_snr_gamma,
            "label_drop": cfg.guidance.label_drop,
        }
        conditions = datamodule.conditions() | {CHOOSE_BY: packaged_conditions(CHOOSE_BY)}
        scoring = build.scoring(cfg, folder, module, conditions, evaluator)
        trainer = build.trainer(cfg, folder, build.callbacks(cfg, folder, settings, scoring))
        datamodule.check(trainer.world_size)
        resumed = None
        if goes_on(cfg):
            resumed = find_checkpoint(folder, settings, trainer.world_size)
        datamodule.prepare_data()  # what is wrong with the data is said before the run begins
    with build.running(cfg, folder, trainer):
        hyperparameters = build.plain(cfg) | {"scored_by": evaluator.name}
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / SUMMARY)
        if trainer.is_global_zero and seconds is not None:
            report(cfg, folder, trainer, module, datamodule, evaluator, seconds)
    return score(folder) if trainer.is_global_zero else None


def score(folder: Path) -> float:
    """How well a finished run did: what a sweep shows, and a search makes as high as it can.

    The accuracy of its weights on the validation list. A search by a test list would train on it.
    """
    figures = json.loads((folder / SUMMARY).read_text("utf-8"))
    return float(figures["weights"]["scores"][f"score/{CHOOSE_BY}/accuracy"])


def report(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule,
    datamodule: ICLEVRDataModule,
    evaluator: Evaluator,
    seconds: float,
) -> None:
    """Leave the weights, the pictures and the figures in the run folder, and say where."""
    device = trainer.strategy.root_device
    best = folder / "checkpoints" / "best.ckpt"
    sampling = {
        "sampler": cfg.sampler.name,
        "steps": cfg.sampler.steps,
        "guidance_scale": cfg.guidance.scale,
        "label_drop": cfg.guidance.label_drop,
    }
    data = datamodule.source.description()
    model = dataclasses.replace(load_model(best), sampling=sampling, data=data)
    weights = save_model(model, folder / "weights")

    pictures = folder / "pictures"
    last = read_checkpoint(folder / "checkpoints" / LAST)
    sampler = Sampler(**build.plain(cfg.callbacks.scoring.sampler))
    strip_picture = draw_strip(model.to(device), datamodule.conditions()["test"], sampler)
    log_picture(trainer.loggers, "sample/strip", strip_picture, last["progress"]["steps"])
    strip = save_picture(strip_picture, pictures / "strip.png")
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    curves = save_picture(
        curves_plot(csv.rows, f"read by {evaluator.name}"), pictures / "curves.png"
    )
    save_picture(schedule_plot({cfg.schedule.name: model.schedule}), pictures / "schedule.png")

    kept = read_checkpoint(best)
    figures = {
        "name": cfg.name,
        "seed": cfg.seed,
        "data": cfg.data.root or "synthetic",
        "steps": last["progress"]["steps"],
        "images_seen": last["progress"]["frames_seen"],
        "seconds_this_process": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "metrics": {name: round(value, 6) for name, value in sorted(csv.latest().items())},
        "evaluator": evaluator.name,
        "machine": build.machine(trainer),
        "versions": build.versions(),
        "weights": {
            "chosen_by": "accuracy on the validation conditions",
            "epoch": kept["progress"]["epoch"],
            "step": kept["progress"]["steps"],
            "scores": kept["callbacks"]["Scoring"]["best_scores"],
        },
    }
    write_text(folder / SUMMARY, json.dumps(figures, indent=2) + "\n")
    grids = sorted(pictures.glob(f"sample_*_{kept['progress']['epoch']:04d}.png"))
    print_report(figures, [*grids, strip, curves, weights])


def draw_strip(model: Model, conditions: Sequence[LabelSet], sampler: Sampler) -> Image.Image:
    """The denoising of a few of the conditions, as a picture."""
    chosen = conditions[:: max(1, len(conditions) // STRIP_PICTURES)][:STRIP_PICTURES]
    strip = Strip(sampler.steps)
    scale = model.sampling["guidance_scale"]
    denoiser = Denoiser(model.net, model.schedule, model.prediction, scale)
    generators = image_generators(0, range(len(chosen)), "strip")
    labels = encode_all(chosen).to(model.device)
    sample(denoiser, labels, sampler, generators, model.image_shape, on_step=strip)
    return strip.picture()


def print_report(figures: dict[str, Any], paths: list[Path]) -> None:
    metrics = figures["metrics"]
    losses = [name for name in metrics if name == "train/loss" or name.startswith("val/")]
    numbers = [f"{name} {metrics[name]:.4f}" for name in losses]
    scores = [
        f"{name.split('/')[1]} {value:.4f}"
        for name, value in figures["weights"]["scores"].items()
        if name.endswith("/accuracy")
    ]
    print(f"\n{figures['name']} on {figures['data']} frames: {', '.join(numbers)}")
    print(
        f"accuracy of the weights, of epoch {figures['weights']['epoch']}: {', '.join(scores)}"
        f" (one draw, read by {figures['evaluator']})"
    )
    print(
        f"{figures['images_seen']:,} frames, {figures['seconds_this_process']:.0f} s this time,"
        f" {figures['parameters'] / 1e6:.1f} M parameters, {figures['machine']['device']}"
    )
    for path in paths:
        print(f"  {os.path.relpath(path)}")
    print(
        f"draw: python -m iclevr_diffusion.sample weights={os.path.relpath(paths[-1].parent)}"
        " labels='red cube, blue sphere'"
    )


if __name__ == "__main__":
    main()
