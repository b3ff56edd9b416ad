"""Train an evaluator, and evaluate_classifier how well it reads frames."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from iclevr_diffusion.cli.command import (
    run_folder,
    user_settings,
)
from iclevr_diffusion.cli.instantiate import instantiate, plain
from iclevr_diffusion.cli.results import machine
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.trainer import make_trainer, shorten
from iclevr_diffusion.cli.wiring import (
    build_callbacks,
    check_loggers,
    refuse_sweep_over_devices,
    run_settings,
    running,
    without_target,
)
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.evaluation.classifier import (
    ObjectEvaluator,
    save_evaluator,
)
from iclevr_diffusion.evaluation.classifier_networks import make_classifier
from iclevr_diffusion.evaluation.evaluator_report import (
    augmented,
    called_clear,
    evaluate_classifier,
    mistakes,
    noise_like,
    with_a_wrong_label,
)
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.evaluator import EvaluatorModule
from iclevr_diffusion.training.fit import check_limits, fit
from iclevr_diffusion.training.resume import find_checkpoint
from iclevr_diffusion.utils.environment import versions
from iclevr_diffusion.utils.files import write_text

FIGURES = "evaluator.json"


def run(cfg: DictConfig) -> None:
    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        shorten(cfg)
        check_loggers(cfg)
        datamodule = instantiate(
            cfg.data,
            "data",
            cache=cfg.paths.cache,
            seed=cfg.seed,
            train_on=cfg.train_on,
            with_unclear=cfg.net.unclear,
        )
        torch.manual_seed(cfg.seed)  # of the initial weights
        module = EvaluatorModule(
            instantiate(cfg.net, "net"),
            instantiate(cfg.optimizer, "optimizer"),
            cfg.seed,
            cfg.trainer.max_steps,
        )
        settings = run_settings(cfg, module, datamodule.identity(), datamodule.batch_size)
        trainer = make_trainer(cfg, folder, build_callbacks(cfg, folder, settings, {}))
        datamodule.check(trainer.world_size)
        check_limits(trainer, datamodule.batches(trainer.world_size))
        resumed = None
        if is_resumed(cfg):
            resumed = find_checkpoint(folder, settings, trainer.world_size)
        datamodule.prepare_data()
    with running(cfg, folder, trainer):
        seconds = fit(trainer, module, datamodule, resumed, plain(cfg), folder / FIGURES)
        if trainer.is_global_zero and seconds is not None:
            report(cfg, folder, trainer, datamodule, seconds)


def report(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    datamodule: EvaluatorData,
    seconds: float,
) -> None:
    """Leave the weights, and how well they read what was held out."""
    last = read_checkpoint(folder / "checkpoints" / LAST)
    net = make_classifier(**without_target(cfg.net))
    net.load_state_dict(last["callbacks"]["EMA"]["net"])
    file = save_evaluator(net, folder / "evaluator.safetensors")
    if not datamodule.held_out:  # the training itself was over before
        datamodule.setup("fit")
    evaluator = ObjectEvaluator(file)  # as it will be used: from the file, in its precision
    first = next(iter(datamodule.held_out.values()))
    sets = datamodule.held_out | {
        "augmented": augmented(first),
        "noise": noise_like(first),
        "wrong label": with_a_wrong_label(first),
    }
    figures: dict[str, Any] = {
        "evaluator": evaluator.name,
        "train_on": datamodule.train_on,
        "frames": datamodule.frames_to_learn_from,
        "epochs": last["progress"]["epoch"] + 1,
        "steps": last["progress"]["steps"],
        "seed": cfg.seed,
        "parameters": sum(parameter.numel() for parameter in evaluator.parameters()),
        "bytes": file.stat().st_size,
        "seconds_this_process": round(seconds, 1),
        "machine": asdict(machine(trainer)),
        "versions": versions(),
        "held_out": {name: evaluate_classifier(evaluator, frames) for name, frames in sets.items()},
        "held_out_unclear": {
            name: called_clear(evaluator, frames)
            for name, frames in datamodule.held_out_unclear.items()
        },
    }
    text = json.dumps(figures, indent=2) + "\n"
    write_text(folder / FIGURES, text)
    paths = [file, folder / FIGURES]
    for name, frames in datamodule.held_out.items():
        image = mistakes(evaluator, frames, f"{name} frames that {evaluator.name} misreads")
        paths.append(save_image(image, folder / f"mistakes_{name}.png"))
    for name, values in figures["held_out"].items():
        print(
            f"{name:12} {values['frames']:5} frames: accuracy {values['accuracy']:.4f},"
            f" exact match {values['exact_match']:.4f},"
            f" count accuracy {values['count_accuracy']:.4f}"
        )
    for name, values in figures["held_out_unclear"].items():
        print(f"{name}: {values['called_clear']:.4f} of {values['objects']} called clear")
    for path in paths:
        print(f"  {os.path.relpath(path)}")
