"""Make the evaluator: ``python -m iclevr_diffusion.train_evaluator data.root=data/iclevr``."""

import json
import os
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion import build
from iclevr_diffusion.callbacks.ema import EMA, averaged_net
from iclevr_diffusion.callbacks.finite import StopOnNonFinite
from iclevr_diffusion.callbacks.progress import ProgressBar, Throughput
from iclevr_diffusion.data.evaluator_data import EvaluatorData
from iclevr_diffusion.data.iclevr import ICLEVR
from iclevr_diffusion.door import door, refuse_sweep_over_devices, run_folder, user_settings
from iclevr_diffusion.evaluation import examine, mistakes, noise_like, spoilt, with_a_wrong_label
from iclevr_diffusion.files import write_text
from iclevr_diffusion.fitting import find_checkpoint, fit
from iclevr_diffusion.loggers import close_loggers
from iclevr_diffusion.modules.evaluator import EvaluatorModule
from iclevr_diffusion.modules.optimizer import OptimizerSettings
from iclevr_diffusion.nets.evaluator import (
    IMAGE_SIZE,
    ObjectEvaluator,
    ObjectNet,
    save_evaluator,
)
from iclevr_diffusion.pictures import save_picture
from iclevr_diffusion.settings import TrainEvaluator


@door("train_evaluator", TrainEvaluator)
def main(cfg: DictConfig) -> None:
    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        datamodule = build_datamodule(cfg)
        torch.manual_seed(cfg.seed)  # of the initial weights
        net = ObjectNet(**build.plain(cfg.net))
        module = EvaluatorModule(net, OptimizerSettings(**build.plain(cfg.optimizer)), cfg.seed)
        checkpoint = find_checkpoint(cfg.resume is not False, folder, module)
        datamodule.prepare_data()
        callbacks = build_callbacks(cfg, folder)
    trainer = build.trainer(cfg, callbacks)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    trainer.loggers = build.loggers(cfg, folder)
    exit_code = 1
    try:
        seconds = fit(trainer, module, datamodule, checkpoint, build.plain(cfg))
        if trainer.is_global_zero:
            report(cfg, folder, trainer, module, datamodule, seconds)
        exit_code = 0
    finally:
        close_loggers(trainer.loggers, exit_code)


def build_datamodule(cfg: DictConfig) -> EvaluatorData:
    root = cfg.data.root
    train_on = cfg.train_on
    if train_on == "auto":
        train_on = "synthetic" if root is None else "both"
    real = None if root is None else ICLEVR(root, IMAGE_SIZE, cfg.paths.cache)
    return EvaluatorData(real, train_on, cfg.data.sequences, cfg.data.batch_size, cfg.seed)


def build_callbacks(cfg: DictConfig, folder: Path) -> list[L.Callback]:
    build.check_at_least_1("trainer.log_every_n_steps", cfg.trainer.log_every_n_steps)
    throughput = Throughput(cfg.trainer.log_every_n_steps)
    result = [
        StopOnNonFinite(cfg.trainer.log_every_n_steps),
        EMA(cfg.ema.decay),
        throughput,
        ModelCheckpoint(
            dirpath=folder / "checkpoints",
            filename="last",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
    ]
    return [*result, ProgressBar(throughput)] if cfg.trainer.enable_progress_bar else result


def report(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: EvaluatorModule,
    datamodule: EvaluatorData,
    seconds: float | None,
) -> None:
    """Leave the weights, and how well they read what was held out."""
    file = save_evaluator(
        cast(ObjectNet, averaged_net(trainer, module)), folder / "evaluator.safetensors"
    )
    evaluator = ObjectEvaluator(file)  # as it will be used: from the file, in its precision
    first = next(iter(datamodule.held_out.values()))
    sets = datamodule.held_out | {
        "spoilt": spoilt(first),
        "noise": noise_like(first),
        "wrong label": with_a_wrong_label(first),
    }
    figures: dict[str, Any] = {
        "evaluator": evaluator.name,
        "train_on": datamodule.train_on,
        "frames": datamodule.frames_to_learn_from,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seed": cfg.seed,
        "parameters": sum(parameter.numel() for parameter in evaluator.parameters()),
        "bytes": file.stat().st_size,
        "seconds_this_process": seconds and round(seconds, 1),
        "machine": build.machine(trainer),
        "versions": build.versions(),
        "held_out": {name: examine(evaluator, frames) for name, frames in sets.items()},
    }
    text = json.dumps(figures, indent=2) + "\n"
    write_text(folder / "evaluator.json", text)
    paths = [file, folder / "evaluator.json"]
    for name, frames in datamodule.held_out.items():
        picture = mistakes(evaluator, frames, f"{name} frames that {evaluator.name} misreads")
        paths.append(save_picture(picture, folder / f"mistakes_{name}.png"))
    for name, values in figures["held_out"].items():
        print(
            f"{name:12} {values['frames']:5} frames: accuracy {values['accuracy']:.4f},"
            f" exact set {values['exact_set']:.4f}, count {values['count']:.4f}"
        )
    for path in paths:
        print(f"  {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
