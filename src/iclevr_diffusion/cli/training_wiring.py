"""From a composed config to the data module and the networks of a training."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from iclevr_diffusion.cli.cross_checks import (
    check_can_be_loaded,
    check_crops,
    check_experts,
    check_forward,
    check_holdout,
    check_predicts_x0,
)
from iclevr_diffusion.cli.instantiate import instantiate
from iclevr_diffusion.cli.validate import TARGET, find_target
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.models.protocol import position_prior
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.utils.errors import UserError

DIFFUSION_ONLY = ("schedule", "prediction", "sampler", "guidance")


def build_datamodule(cfg: DictConfig) -> DataModule:
    """Build the data module; its order of frames follows the run's seed.

    Raises:
        UserError: A setting is out of range, or the data module has no ``image_size``.
    """
    datamodule: DataModule = instantiate(cfg.data, "data", cache=cfg.paths.cache)
    if not hasattr(datamodule, "image_size"):
        raise UserError("data: the data module needs image_size, the width of its images")
    datamodule.order_seed = cfg.seed
    return datamodule


def is_gan(cfg: DictConfig) -> bool:
    """Return whether the config names a GAN as its model."""
    return issubclass(_class_of(cfg.model, "model"), GANModule)


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
        raise UserError("a GAN needs trainer.max_epochs: model.batch_sizes splits the epochs")
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
    check_can_be_loaded(net, schedule)
    check_forward(net)
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
    prior = position_prior(module.network)
    if prior is None and module.network.takes_positions:
        name = type(module.network).__name__
        raise UserError(f"net.positions=false: {name} alone cannot be trained without positions")
    datamodule.with_positions = prior is not None
    datamodule.with_headings = prior is not None and prior.has_headings
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
    """Return the class that a node names; for a function, that of any object."""
    target = find_target(node[TARGET], path)
    return target if isinstance(target, type) else object
