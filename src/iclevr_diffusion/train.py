"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from omegaconf import DictConfig
from PIL import Image

from iclevr_diffusion import __version__, build
from iclevr_diffusion.callbacks.ema import averaged_net
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, sample
from iclevr_diffusion.door import door, run_folder, user_settings
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.export import Model, save_model
from iclevr_diffusion.labels import encode_all
from iclevr_diffusion.loggers import MetricsCSV, close_loggers, log_picture
from iclevr_diffusion.modules.diffusion import DiffusionModule
from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.pictures import Strip, curves_plot, save_picture, schedule_plot
from iclevr_diffusion.rng import image_generators

STRIP_PICTURES = 4


@door("train")
def main(cfg: DictConfig) -> None:
    folder = run_folder()
    with user_settings():
        datamodule = build.datamodule(cfg)
        module = build.module(cfg)
        evaluator = build.evaluator(cfg)
        datamodule.prepare_data()  # what is wrong with the data is said before the rest is built
        callbacks = build.callbacks(cfg, folder, datamodule.conditions(), evaluator)
        trainer = build.trainer(cfg, callbacks, build.loggers(cfg, folder))
    exit_code = 1
    try:
        checkpoint = find_checkpoint(cfg, folder, module, trainer)
        for logger in trainer.loggers:
            logger.log_hyperparams(build.plain(cfg))
        start = time.perf_counter()
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
        if trainer.is_global_zero:
            seconds = time.perf_counter() - start
            report(cfg, folder, trainer, module, datamodule, seconds)
        exit_code = 0
    finally:
        close_loggers(trainer.loggers, exit_code)


def find_checkpoint(
    cfg: DictConfig, folder: Path, module: DiffusionModule, trainer: L.Trainer
) -> Path | None:
    """The checkpoint to go on from; None for a run that begins.

    Raises:
        UserError: the checkpoint is of another model.
    """
    path = folder / "checkpoints" / "last.ckpt"
    if not cfg.resume or not path.is_file():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for part, settings in module.description().items():
        if saved["model"][part] != settings:
            raise UserError(
                f"resume: {path} was trained with {part} {saved['model'][part]}, not {settings}"
            )
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            logger.restore(saved["global_step"])
    return path


def report(
    cfg: DictConfig,
    folder: Path,
    trainer: L.Trainer,
    module: DiffusionModule,
    datamodule: ICLEVRDataModule,
    seconds: float,
) -> None:
    """Leave the weights, the pictures and the figures in the run folder, and say where."""
    sampler = Sampler(**build.plain(cfg.sampler))
    sampling = {
        "sampler": sampler.name,
        "steps": sampler.steps,
        "guidance_scale": cfg.guidance.scale,
    }
    net = cast(ConditionalUNet, averaged_net(trainer, module))
    model = Model(net, module.schedule, module.objective.prediction, sampling)
    weights = save_model(model, folder / "weights")

    csv = next(logger for logger in trainer.loggers if isinstance(logger, MetricsCSV))
    pictures = folder / "pictures"
    strip_picture = draw_strip(model, module, datamodule, sampler)
    log_picture(trainer.loggers, "sample/strip", strip_picture, trainer.global_step)
    strip = save_picture(strip_picture, pictures / "strip.png")
    curves = save_picture(curves_plot(csv.rows), pictures / "curves.png")
    save_picture(schedule_plot({cfg.schedule.name: module.schedule}), pictures / "schedule.png")

    figures = summarize(cfg, trainer, module, seconds)
    text = json.dumps(figures, indent=2) + "\n"
    (folder / "summary.json").write_text(text, encoding="utf-8")
    grids = sorted(pictures.glob(f"sample_*_{trainer.current_epoch - 1:04d}.png"))
    print_report(figures, [*grids, strip, curves, weights])


def draw_strip(
    model: Model, module: DiffusionModule, datamodule: ICLEVRDataModule, sampler: Sampler
) -> Image.Image:
    """The denoising of a few test conditions, as a picture."""
    conditions = datamodule.conditions()["test"]
    chosen = conditions[:: max(1, len(conditions) // STRIP_PICTURES)][:STRIP_PICTURES]
    labels = encode_all(chosen).to(module.device)
    strip = Strip(sampler.steps)
    denoiser = Denoiser(
        model.net, module.schedule, model.prediction, model.sampling["guidance_scale"]
    )
    generators = image_generators(0, range(len(chosen)), "strip")
    sample(denoiser, labels, sampler, generators, model.image_shape, on_step=strip)
    return strip.picture()


def summarize(
    cfg: DictConfig, trainer: L.Trainer, module: DiffusionModule, seconds: float
) -> dict[str, Any]:
    """The figures of the run, and what they were measured with."""
    device = module.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    images = trainer.global_step * cfg.data.batch_size * trainer.world_size
    return {
        "name": cfg.name,
        "seed": cfg.seed,
        "data": cfg.data.root or "synthetic",
        "steps": trainer.global_step,
        "images_seen": images * trainer.accumulate_grad_batches,
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
