"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from iclevr_diffusion import __version__, build
from iclevr_diffusion.callbacks.ema import averaged_net
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, sample
from iclevr_diffusion.door import door, run_folder, user_settings
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.export import Model, read_checkpoint, save_model
from iclevr_diffusion.files import write_text
from iclevr_diffusion.labels import LabelSet, encode_all
from iclevr_diffusion.loggers import MetricsCSV, close_loggers, log_picture
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.pictures import Strip, curves_plot, save_picture, schedule_plot
from iclevr_diffusion.rng import image_generators

STRIP_PICTURES = 4


@door("train")
def main(cfg: DictConfig) -> None:
    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        datamodule = build.datamodule(cfg)
        module = build.module(cfg)
        evaluator = build.evaluator(cfg)
        Sampler(**build.plain(cfg.sampler)).scheduler(module.schedule)
        Denoiser(module.net, module.schedule, module.objective.prediction, cfg.guidance.scale)
        checkpoint = find_checkpoint(cfg, folder, module)
        datamodule.prepare_data()  # what is wrong with the data is said before the rest is built
        callbacks = build.callbacks(cfg, folder, module, datamodule.conditions(), evaluator)
    trainer = build.trainer(cfg, callbacks)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    trainer.loggers = build.loggers(cfg, folder)
    exit_code = 1
    try:
        train(cfg, folder, trainer, module, datamodule, checkpoint)
        exit_code = 0
    finally:
        close_loggers(trainer.loggers, exit_code)


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: it is one.
    """
    hydra = HydraConfig.get()
    basic = hydra.runtime.choices.get("hydra/launcher") == "basic"
    several = cfg.trainer.devices not in (1, "1") or cfg.trainer.num_nodes != 1
    if hydra.mode == RunMode.MULTIRUN and basic and several:
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def find_checkpoint(cfg: DictConfig, folder: Path, module: DiffusionModule) -> Path | None:
    """The checkpoint to go on from; None for a run that begins.

    Raises:
        UserError: the checkpoint is damaged, or of another model.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not cfg.resume or not path.is_file():
        return None
    saved = read_checkpoint(path)["model"]
    for part, settings in module.description().items():
        if saved.get(part) != settings:
            raise UserError(
                f"resume: {path} was trained with {part} {saved.get(part)}, not {settings}"
            )
    return path


def train(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule,
    datamodule: ICLEVRDataModule,
    checkpoint: Path | None,
) -> None:
    """Fit, from the checkpoint where there is one, and report."""
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    steps_before = 0
    if checkpoint is not None:
        steps_before = read_checkpoint(checkpoint)["global_step"]
        csv.restore(steps_before)
    for logger in trainer.loggers:
        logger.log_hyperparams(build.plain(cfg))
    start = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    seconds = time.perf_counter() - start
    if not trainer.is_global_zero:
        return
    if trainer.global_step == steps_before:
        print(f"{folder} is finished: {steps_before} steps; raise trainer.max_epochs to go on")
    else:
        report(cfg, folder, trainer, module, datamodule, seconds)


def report(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule,
    datamodule: ICLEVRDataModule,
    seconds: float,
) -> None:
    """Leave the weights, the pictures and the figures in the run folder, and say where."""
    device = trainer.strategy.root_device  # Lightning has moved the module, not the average, away
    net = cast(ConditionalUNet, averaged_net(trainer, module)).to(device)
    sampling = {
        "sampler": cfg.sampler.name,
        "steps": cfg.sampler.steps,
        "guidance_scale": cfg.guidance.scale,
    }
    schedule = module.schedule.to(device)
    model = Model(net, schedule, module.objective.prediction, sampling)
    weights = save_model(model, folder / "weights")

    pictures = folder / "pictures"
    sampler = Sampler(**build.plain(cfg.callbacks.scoring.sampler))
    strip_picture = draw_strip(model, datamodule.conditions()["test"], sampler, device)
    log_picture(trainer.loggers, "sample/strip", strip_picture, trainer.global_step)
    strip = save_picture(strip_picture, pictures / "strip.png")
    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    curves = save_picture(curves_plot(csv.rows), pictures / "curves.png")
    save_picture(schedule_plot({cfg.schedule.name: schedule}), pictures / "schedule.png")

    figures = summarize(cfg, trainer, module, seconds)
    write_text(folder / "summary.json", json.dumps(figures, indent=2) + "\n")
    grids = sorted(pictures.glob(f"sample_*_{trainer.current_epoch - 1:04d}.png"))
    print_report(figures, [*grids, strip, curves, weights])


def draw_strip(
    model: Model, conditions: Sequence[LabelSet], sampler: Sampler, device: torch.device
) -> Image.Image:
    """The denoising of a few of the conditions, as a picture."""
    chosen = conditions[:: max(1, len(conditions) // STRIP_PICTURES)][:STRIP_PICTURES]
    strip = Strip(sampler.steps)
    scale = model.sampling["guidance_scale"]
    denoiser = Denoiser(model.net, model.schedule, model.prediction, scale)
    generators = image_generators(0, range(len(chosen)), "strip")
    labels = encode_all(chosen).to(device)
    sample(denoiser, labels, sampler, generators, model.image_shape, on_step=strip)
    return strip.picture()


def summarize(
    cfg: DictConfig, trainer: L.Trainer, module: DiffusionModule, seconds: float
) -> dict[str, Any]:
    """The figures of the run, and what they were measured with."""
    device = trainer.strategy.root_device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1  # of all processes of this run
    return {
        "name": cfg.name,
        "seed": cfg.seed,
        "data": cfg.data.root or "synthetic",
        "steps": trainer.global_step,
        "images_seen": batches * cfg.data.batch_size * trainer.world_size,
        "seconds_this_process": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "metrics": {
            name: round(float(value), 6) for name, value in sorted(trainer.callback_metrics.items())
        },
        "evaluator": "course" if cfg.evaluator.checkpoint else None,
        "machine": {
            "device": gpu or f"{platform.machine()} processor, {torch.get_num_threads()} threads",
            "processes": trainer.world_size,
            "precision": trainer.precision,
        },
        "versions": {
            "iclevr-diffusion": __version__,
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
        },
    }


def print_report(figures: dict[str, Any], paths: list[Path]) -> None:
    metrics = figures["metrics"]
    shown = [name for name in metrics if name.startswith(("val/", "score/"))]
    numbers = [f"{name} {metrics[name]:.4f}" for name in ("train/loss", *shown) if name in metrics]
    print(f"\n{figures['name']} on {figures['data']} frames: {', '.join(numbers)}")
    print(
        f"{figures['images_seen']:,} frames in {figures['seconds_this_process']:.0f} s,"
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
