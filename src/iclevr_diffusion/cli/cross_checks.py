"""Refuse settings of a training that do not fit together."""

import copy
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from iclevr_diffusion.cli.instantiate import instantiate, named
from iclevr_diffusion.cli.jobs import shares_its_process
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.schedule import SCHEDULES, Schedule
from iclevr_diffusion.diffusion.trained import DEFAULT_SAMPLING, make_guidance, make_sampler
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.known_networks import NETWORKS
from iclevr_diffusion.models.protocol import (
    CropNetwork,
    DenoisingNetwork,
    estimates_x0,
    example_inputs,
)
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.distributed import are_several
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.imports import is_own_code
from iclevr_diffusion.utils.text import one_line


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: The command is such a sweep.
    """
    if shares_its_process() and are_several(cfg.trainer.devices, cfg.trainer.num_nodes):
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def check_decay(cfg: DictConfig, module: TrainedModule) -> None:
    """Refuse a decay of the learning rate over an unknown number of steps."""
    decay, limits = module.optimizer_settings.decay, cfg.trainer
    if decay != "constant" and limits.max_epochs in (None, -1) and limits.max_steps == -1:
        raise UserError(
            f"optimizer.decay={decay} needs trainer.max_epochs or max_steps; max_time alone does"
            " not end it"
        )


def check_can_be_loaded(net: nn.Module, schedule: Schedule) -> None:
    """Refuse classes of a user's own that lack what training, sampling or loading need.

    Raises:
        UserError: The network is no :class:`~iclevr_diffusion.models.protocol.DenoisingNetwork`, or
            a class is not registered.
    """
    name = type(net).__name__
    members = ["config", "num_labels", "takes_positions"]
    if getattr(net, "takes_positions", False):
        members.append("layout")
    missing = [member for member in members if not hasattr(net, member)]
    if not missing and "image_size" not in cast(DenoisingNetwork, net).config:
        missing = ["an argument image_size"]
    if missing:
        raise UserError(f"net: {name} is not a DenoisingNetwork; it lacks {', '.join(missing)}")
    if NETWORKS.get(name) is not type(net):
        raise UserError(f"net: {name} needs the decorator register_network, to be loaded again")
    if SCHEDULES.get(type(schedule).__name__) is not type(schedule):
        raise UserError(
            f"schedule: {type(schedule).__name__} needs the decorator register_schedule, to be"
            " loaded again"
        )


def check_forward(net: nn.Module) -> None:
    """Call a user's network for one image, so that a mistake in it is found before training.

    Raises:
        UserError: It does not take the arguments of
            :class:`~iclevr_diffusion.models.protocol.DenoisingNetwork`, or does not return a tensor
            of the images' shape.
    """
    if is_own_code(type(net)):
        return
    network = cast(DenoisingNetwork, net)
    inputs = example_inputs(network, network.config["image_size"])
    name = f"net: {type(net).__name__}"
    try:
        with torch.no_grad():
            output = copy.deepcopy(net).eval()(*inputs)
    except Exception as error:  # whatever a user's own network raises
        raise UserError(
            f"{name} fails for one image, given x_t, timesteps, labels and positions:"
            f" {type(error).__name__}: {one_line(error)}"
        ) from error
    shape = tuple(inputs[0].shape)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != shape:
        raise UserError(f"{name} must return a tensor of shape {shape}, got {found}")


def check_predicts_x0(net: nn.Module, objective: Objective) -> None:
    """Refuse another prediction than ``sample`` for the networks that need it."""
    predicts_x0 = objective.prediction.name == objective.sampled_as.name == "sample"
    if estimates_x0(net) and not predicts_x0:
        raise UserError(
            f"{type(net).__name__} estimates x_0: it needs prediction=sample, and no"
            " prediction.sampled_as"
        )


def check_experts(net: nn.Module, objective: Objective, crops: Crops | None) -> None:
    """Refuse noise levels that an expert for low noise is never used at."""
    if not isinstance(net, NoiseExperts):
        return
    switch, max_noise = net.switch, objective.max_noise
    if max_noise is None or max_noise < switch or (max_noise > switch and not crops):
        needed = "at least as large" if crops else "equal to it, since data.crop_size is null"
        raise UserError(
            f"{type(net).__name__} uses its expert for low noise below net.switch={switch}:"
            f" prediction.max_noise must be {needed}; got {max_noise}"
        )


def check_holdout(net: nn.Module, settings: DictConfig, datamodule: DataModule) -> None:
    """Refuse a network that starts from weights trained on what the data module holds out."""
    if datamodule.holdout is None or not isinstance(net, NoiseExperts | DetailNet):
        return
    for name in ("weights", "coarse_weights", "detail_weights"):
        weights = settings.get(name)
        if weights is None:
            continue
        split = load_model(weights).split
        if split is None or split.settings != datamodule.holdout.description():
            raise UserError(
                f"net.{name}={weights} were not trained with this data.holdout, so they have seen"
                " what it holds out"
            )


def check_crops(net: nn.Module, datamodule: DataModule) -> None:
    """Refuse crops that the network does not take, or not of that size."""
    crops, image_size = datamodule.crops, datamodule.image_size
    if crops is None:
        return
    if not isinstance(net, CropNetwork):
        raise UserError(
            "data.crop_size needs a network that trains on crops, such as net=detail, and"
            f" {type(net).__name__} does not; leave it null"
        )
    if crops.size > image_size or crops.size % net.crop_multiple:
        raise UserError(
            f"data.crop_size must be a multiple of {net.crop_multiple} of at most"
            f" data.image_size={image_size}, got {crops.size}"
        )


def default_sampling(cfg: DictConfig, module: DiffusionModule | GANModule) -> dict[str, Any]:
    """Return the default sampling settings of the weights, checked; empty for a GAN.

    Raises:
        UserError: The model cannot sample so.
    """
    if not isinstance(module, DiffusionModule):
        return {}
    sampler = instantiate(cfg.sampler, "sampler")
    guidance = instantiate(cfg.guidance, "guidance")
    with named("sampler", {"steps": "sampler.steps"}):
        module.pipeline(module.net, sampler, guidance)
    with named("guidance", {}):
        guidance.check_label_drop(guidance.label_drop)
    described: dict[str, Any] = sampler.description() | guidance.description()
    stored = DEFAULT_SAMPLING | described
    for name, built, again in (
        ("sampler", sampler, make_sampler(stored)),
        ("guidance", guidance, make_guidance(stored)),
    ):
        if type(built) is not type(again):
            raise UserError(
                f"{name}: {type(built).__name__} cannot be stored with weights, which keep settings"
                f" of {type(again).__name__}; use that class"
            )
    return described | {"label_drop": guidance.label_drop}
