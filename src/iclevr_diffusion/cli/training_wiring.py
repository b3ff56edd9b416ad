"""From a composed config to the objects of a training."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import nn

from iclevr_diffusion.cli.cross_checks import (
    check_crops,
    check_experts,
    check_holdout,
    check_predicts_x0,
)
from iclevr_diffusion.cli.instantiate import instantiate, named
from iclevr_diffusion.cli.trainer import limits
from iclevr_diffusion.cli.validate import TARGET, find_target
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.evaluation.classifier import (
    Evaluator,
    check_vocabulary,
    second_evaluator,
)
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.training.callbacks.fit_to_data import FitToData
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.callbacks.progress import ProgressBar, ProgressInLines, Throughput
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.utils.checks import check_at_least
from iclevr_diffusion.utils.errors import UserError

DIFFUSION_ONLY = ("schedule", "prediction", "sampler", "guidance")


def build_datamodule(cfg: DictConfig) -> DataModule:
    """Build the data module; its order of frames follows the run's seed."""
    datamodule: DataModule = instantiate(cfg.data, "data", cache=cfg.paths.cache)
    datamodule.order_seed = cfg.seed
    return datamodule


def is_gan(cfg: DictConfig) -> bool:
    """Return whether the config names a GAN as its model."""
    target = find_target(cfg.model[TARGET], "model")
    return isinstance(target, type) and issubclass(target, GANModule)


def build_module(cfg: DictConfig, datamodule: DataModule) -> DiffusionModule | GANModule:
    """Build the networks and how they are trained.

    Raises:
        UserError: Settings are out of range or do not fit together.
    """
    torch.manual_seed(cfg.seed)  # of the initial weights
    return (build_gan if is_gan(cfg) else build_diffusion)(cfg, datamodule)


def build_gan(cfg: DictConfig, datamodule: DataModule) -> GANModule:
    """Build a GAN's module.

    Raises:
        UserError: A setting belongs to diffusion models, or does not fit another one.
    """
    unused = [name for name in DIFFUSION_ONLY if cfg.get(name) is not None]
    if unused:
        raise UserError(f"a GAN has no {', '.join(unused)}: leave it out, and use experiment=dcgan")
    if cfg.trainer.accumulate_grad_batches != 1:
        raise UserError("trainer.accumulate_grad_batches must be 1 for a GAN")
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise UserError("a GAN needs trainer.max_epochs: model.batch_sizes divide them")
    generator = build_net(cfg, datamodule)
    if not isinstance(generator, Generator):
        raise UserError("model=gan needs net=dcgan: use experiment=dcgan")
    size = generator.image_shape[1]
    if size != datamodule.image_size:
        raise UserError(
            f"net.channels makes images of {size} pixels, data.image_size is"
            f" {datamodule.image_size}"
        )
    discriminator = Discriminator(generator.config["channels"], generator.num_labels)
    if cfg.compile:
        generator.compile()
        discriminator.compile()
    module: GANModule = instantiate(
        cfg.model,
        "model",
        net=generator,
        discriminator=discriminator,
        optimizer=instantiate(cfg.optimizer, "optimizer"),
        epochs=cfg.trainer.max_epochs,
        seed=cfg.seed,
        max_steps=cfg.trainer.max_steps,
        fixed_noise=cfg.fixed_noise,
    )
    if any(datamodule.batch_size % size for size in module.batch_sizes):
        raise UserError(
            f"data.batch_size={datamodule.batch_size} must be a multiple of each of"
            f" model.batch_sizes={module.batch_sizes}"
        )
    return module


def build_diffusion(cfg: DictConfig, datamodule: DataModule) -> DiffusionModule:
    """Build a diffusion model's module.

    Raises:
        UserError: A setting belongs to a GAN, or does not fit another one.
    """
    if issubclass(_class_of(cfg.net, "net"), Generator):
        raise UserError(
            f"net=dcgan is a GAN, which has no {', '.join(DIFFUSION_ONLY)}: use experiment=dcgan"
        )
    if any(cfg.get(name) is None for name in DIFFUSION_ONLY):
        raise UserError(f"a diffusion model needs {', '.join(DIFFUSION_ONLY)}; one of them is null")
    schedule = instantiate(cfg.schedule, "schedule")
    objective = instantiate(cfg.prediction, "prediction", schedule=schedule)
    net = build_net(cfg, datamodule, schedule=schedule, timesteps=schedule.timesteps)
    check_predicts_x0(net, objective)
    check_experts(net, objective, datamodule.crops)
    check_holdout(net, cfg.net, datamodule)
    check_crops(net, datamodule)
    if cfg.compile:
        net.compile()  # in place: checkpoints keep their keys
    module: DiffusionModule = instantiate(
        cfg.model,
        "model",
        net=net,
        objective=objective,
        optimizer=instantiate(cfg.optimizer, "optimizer"),
        label_drop=instantiate(cfg.guidance, "guidance").label_drop,
        seed=cfg.seed,
        max_steps=cfg.trainer.max_steps,
        crops=datamodule.crops,
        fixed_noise=cfg.fixed_noise,
    )
    datamodule.with_positions = module.network.takes_positions
    return module


def build_net(cfg: DictConfig, datamodule: DataModule, **given: Any) -> nn.Module:
    """Build the network, untrained.

    Only i-CLEVR's labels are taken for colors and shapes unless ``net.num_colors`` says so.
    """
    vocabulary = datamodule.vocabulary
    given |= {"image_size": datamodule.image_size, "num_labels": len(vocabulary)}
    if vocabulary != ICLEVR_LABELS:  # whose colors networks know without being told
        given["num_colors"] = len(vocabulary)
    net: nn.Module = instantiate(cfg.net, "net", **given)
    return net


def _class_of(node: DictConfig, path: str) -> type:
    target = find_target(node[TARGET], path)
    return target if isinstance(target, type) else object


def build_scoring(
    cfg: DictConfig,
    folder: Path,
    module: DiffusionModule | GANModule,
    datamodule: DataModule,
    evaluator: Evaluator,
) -> Scoring:
    """Build the callback that generates and scores images.

    Raises:
        UserError: It is missing, or the model cannot sample so.
        ValueError: A setting is out of range.
    """
    node = cfg.callbacks.get("scoring")
    if node is None:
        raise UserError("callbacks.scoring is needed: it chooses the weights of a run")
    guided = isinstance(module, DiffusionModule)
    if not guided and node.get("sampler") is not None:
        raise UserError("callbacks.scoring.sampler must be null for a GAN")
    if guided and node.get("sampler") is None:
        raise UserError("callbacks.scoring.sampler is null; a diffusion model needs one")
    check_vocabulary(evaluator, datamodule.vocabulary, "the data")
    scoring: Scoring = instantiate(
        node,
        "callbacks.scoring",
        conditions=datamodule.scored_conditions(),
        evaluator=evaluator,
        second=second_evaluator(datamodule.vocabulary),
        guidance=instantiate(cfg.guidance, "guidance") if guided else None,
        folder=folder / "images",
        best=folder / "checkpoints" / "best.ckpt",
    )
    path = "callbacks.scoring"
    with named(path, {"steps": f"{path}.sampler.steps", "layout": f"{path}.layout"}):
        module.pipeline(module.net, scoring.sampler, scoring.guidance, scoring.layout)  # type: ignore[arg-type]
    return scoring


def build_callbacks(
    cfg: DictConfig,
    folder: Path,
    settings: dict[str, Any],
    sampling: dict[str, Any],
    scoring: Scoring | None = None,
    *more: L.Callback,
) -> list[L.Callback]:
    """Build all callbacks, in the order in which they see each step.

    Each callback of the config is given those of the arguments of :data:`.schema.SCORED` that it
    takes.

    Args:
        cfg: The settings of the run.
        folder: The run folder.
        settings: What must match on resume.
        sampling: The default sampling settings of the weights.
        scoring: The callback that scores images; None for a run without.
        more: Callbacks that see a step before those of the config.

    Raises:
        UserError: A setting is out of range, or a callback is missing that every run needs.
    """
    every_n_steps = cfg.trainer.log_every_n_steps
    check_at_least("trainer.log_every_n_steps", every_n_steps, 1)
    given: dict[str, Any] = {"settings": settings, "sampling": sampling}
    if scoring is not None:
        names = ("conditions", "evaluator", "second", "guidance", "best")
        given |= {name: getattr(scoring, name) for name in names}
    built = {
        str(name): instantiate(
            node,
            f"callbacks.{name}",
            folder=folder / "checkpoints" if name == "checkpoint" else folder,
            **given,
        )
        for name, node in cfg.callbacks.items()
        if node is not None and name != "scoring"
    }
    if "checkpoint" not in built:
        raise UserError("callbacks.checkpoint is needed: a run is resumed from its checkpoints")
    checkpoints, ema = built.pop("checkpoint"), built.pop("ema", None)
    throughput = Throughput(every_n_steps)
    callbacks: list[L.Callback | None] = [
        FitToData(),
        NaNGuard(every_n_steps),
        limits(cfg),
        StopOnSignal(checkpoints, every_n_steps),
        ema,
        throughput,
        scoring,
        *more,
        *built.values(),
        checkpoints,
        build_progress(cfg, throughput),
    ]
    return [callback for callback in callbacks if callback is not None]


def build_progress(cfg: DictConfig, throughput: Throughput) -> L.Callback | None:
    """Return the progress bar, or progress in lines for output that is not a terminal."""
    if not cfg.trainer.enable_progress_bar:
        return None
    if sys.stderr.isatty():
        return ProgressBar(throughput)
    return ProgressInLines(throughput, cfg.trainer.max_steps)
