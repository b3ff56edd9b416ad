"""What a training leaves in its run folder: weights, pictures, figures."""

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
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.drawing import Drawer
from iclevr_diffusion.export import GAN, Model, load_model, read_checkpoint, save_model, weights_sum
from iclevr_diffusion.files import SUMMARY, write_text
from iclevr_diffusion.labels import LabelSet, encode_all
from iclevr_diffusion.loggers import MetricsCSV, log_picture
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.modules.gan import GANModule
from iclevr_diffusion.nets.evaluator import Evaluator
from iclevr_diffusion.pictures import Strip, save_picture
from iclevr_diffusion.plots import curves_plot, schedule_plot
from iclevr_diffusion.rng import image_generators
from iclevr_diffusion.settings import drawing

STRIP_PICTURES = 4


def leave_results(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule | GANModule,
    datamodule: ICLEVRDataModule,
    evaluator: Evaluator,
    seconds: float,
) -> None:
    """Leave the weights, the pictures and the figures in the run folder, and say where.

    Args:
        seconds: that this process trained for.
    """
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    kept = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    last = read_checkpoint(folder / "checkpoints" / LAST)
    model = publish(cfg, folder, datamodule.source.description())
    pictures = leave_pictures(
        cfg, folder, trainer, model, datamodule.conditions()["test"], evaluator, csv
    )
    forward = model.flops_forward()
    figures = {
        "name": cfg.name,
        "seed": cfg.seed,
        "data": cfg.data.root or "synthetic",
        "steps": last["progress"]["steps"],
        "images_seen": last["progress"]["frames_seen"],
        "seconds": round(last["callbacks"]["Limits"]["time_elapsed"]["train"], 1),
        "seconds_this_process": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "flops_forward": forward,
        "flops_an_image_trained_on": module.flops_an_image(forward),
        "network_calls": draws_with(cfg, model).network_calls,
        "metrics": {name: round(value, 6) for name, value in sorted(csv.latest().items())},
        "evaluator": evaluator.name,
        "machine": build.machine(trainer),
        "versions": build.versions(),
        "weights": {
            "sha256": weights_sum(folder / "weights"),
            "chosen_by": "accuracy + exact sets on the validation conditions",
            "epoch": kept["progress"]["epoch"],
            "step": kept["progress"]["steps"],
            "scores": kept["callbacks"]["Scoring"]["best_scores"],
            "drawn_with": str(draws_with(cfg, model)),
            "all_alike": kept["callbacks"]["Scoring"]["all_alike"],
        },
    }
    write_text(folder / SUMMARY, json.dumps(figures, indent=2) + "\n")
    grids = sorted((folder / "pictures").glob(f"sample_*_{kept['progress']['epoch']:04d}.png"))
    print_results(figures, [*grids, *pictures, folder / "weights"])


def publish(cfg: DictConfig, folder: Path, data: dict[str, Any]) -> Model | GAN:
    """Write the averaged network of the best checkpoint as weights, with how its author draws."""
    model = dataclasses.replace(load_model(folder / "checkpoints" / "best.ckpt"), data=data)
    if isinstance(model, Model):
        model = dataclasses.replace(model, sampling=build.sampling(cfg))
    save_model(model, folder / "weights")
    return model


def draws_with(cfg: DictConfig, model: Model | GAN) -> Drawer:
    """How a model draws during its training: quickly."""
    if isinstance(model, GAN):
        return model.drawer()
    scoring = cfg.callbacks.scoring
    return model.drawer(**drawing(scoring.sampler, cfg.guidance), layout=scoring.layout)


def leave_pictures(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    model: Model | GAN,
    conditions: Sequence[LabelSet],
    evaluator: Evaluator,
    csv: MetricsCSV,
) -> list[Path]:
    """Draw the strip and plot the curves; for a diffusion model also its schedule."""
    pictures = folder / "pictures"
    model = model.to(trainer.strategy.root_device)
    strip = draw_strip(draws_with(cfg, model), conditions, model)
    if isinstance(model, Model):
        save_picture(schedule_plot({cfg.schedule.name: model.schedule}), pictures / "schedule.png")
    log_picture(trainer.loggers, "sample/strip", strip, trainer.global_step - 1)
    curves = curves_plot(csv.rows, f"read by {evaluator.name}")
    return [
        save_picture(strip, pictures / "strip.png"),
        save_picture(curves, pictures / "curves.png"),
    ]


def draw_strip(draw: Drawer, conditions: Sequence[LabelSet], model: Model | GAN) -> Image.Image:
    """The denoising of a few of the conditions, as a picture."""
    chosen = conditions[:: max(1, len(conditions) // STRIP_PICTURES)][:STRIP_PICTURES]
    strip = Strip(draw.steps)
    generators = image_generators(0, range(len(chosen)), "strip")
    draw(encode_all(chosen).to(model.device), generators, strip)
    return strip.picture()


def print_results(figures: dict[str, Any], paths: list[Path]) -> None:
    metrics = figures["metrics"]
    losses = [name for name in metrics if name.startswith(("train/loss", "val/"))]
    numbers = [f"{name} {metrics[name]:.4f}" for name in losses]
    scores = [
        f"{name.split('/')[1]} {value:.4f}"
        for name, value in figures["weights"]["scores"].items()
        if name.endswith("/accuracy")
    ]
    print(f"\n{figures['name']} on {figures['data']} frames: {', '.join(numbers)}")
    print(
        f"accuracy of the weights, of epoch {figures['weights']['epoch']}: {', '.join(scores)}"
        f" (one draw, {figures['weights']['drawn_with']}, read by {figures['evaluator']})"
    )
    if figures["weights"]["all_alike"]:
        print("the network has collapsed: whatever it is told to, it draws the same picture")
    print(
        f"{figures['images_seen']:,} frames, {figures['seconds']:.0f} s,"
        f" {figures['parameters'] / 1e6:.1f} M parameters, {figures['machine']['device']}"
    )
    for path in paths:
        print(f"  {os.path.relpath(path)}")
    print(
        f"draw: python -m iclevr_diffusion.sample weights={os.path.relpath(paths[-1].parent)}"
        " labels='red cube, blue sphere'"
    )
