"""From a composed config to the objects of a training run, and what must fit together."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from iclevr_diffusion.cli.instantiate import instantiate, named, plain
from iclevr_diffusion.cli.jobs import in_a_sweep, shares_its_process
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.trainer import check_at_least_1, limits, overrides
from iclevr_diffusion.cli.validate import TARGET, find_target, parameters
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.loss import MAX_WEIGHT, Objective
from iclevr_diffusion.evaluation.classifier import Evaluator, load_second_evaluator
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.protocol import CropNetwork
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.callbacks.fit_to_data import FitToData
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.callbacks.progress import ProgressBar, ProgressInLines, Throughput
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.distributed import are_several
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.training.loggers import (
    MetricsCSV,
    check_wandb_settings,
    close_loggers,
    wandb_logger,
)
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, remove_partial, used_alone, write_text
from iclevr_diffusion.utils.lightning_internals import callbacks_of
from iclevr_diffusion.utils.status import status_kept

DIFFUSION_ONLY = ("schedule", "prediction", "sampler", "guidance")
OBJECTIVE_SETTINGS = (
    "min_snr_gamma",
    "data_std",
    "timestep_shift",
    "max_noise",
    "noise_mean",
    "noise_std",
)


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: It is one.
    """
    if shares_its_process() and are_several(cfg.trainer.devices, cfg.trainer.num_nodes):
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def build_datamodule(cfg: DictConfig) -> DataModule:
    datamodule: DataModule = instantiate(cfg.data, "data", cache=cfg.paths.cache)
    datamodule.order_seed = cfg.seed
    return datamodule


def is_gan(cfg: DictConfig) -> bool:
    """Whether the config names a GAN as its model."""
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
    discriminator = Discriminator(list(cfg.net.channels))
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
    if issubclass(_class_of(cfg.net, "net"), Generator):
        raise UserError(
            f"net=dcgan is a GAN, which has no {', '.join(DIFFUSION_ONLY)}: use experiment=dcgan"
        )
    if any(cfg.get(name) is None for name in DIFFUSION_ONLY):
        raise UserError(f"a diffusion model needs {', '.join(DIFFUSION_ONLY)}; one of them is null")
    schedule = instantiate(cfg.schedule, "schedule")
    objective = instantiate(cfg.prediction, "prediction", schedule=schedule)
    check_predicts_x0(cfg, objective)
    net = build_net(cfg, datamodule, schedule=schedule, timesteps=schedule.timesteps)
    check_experts(net, objective, datamodule.crops)
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
    """Build the network, untrained."""
    given |= {"image_size": datamodule.image_size, "num_labels": len(datamodule.vocabulary)}
    net: nn.Module = instantiate(cfg.net, "net", **given)
    return net


def _class_of(node: DictConfig, path: str) -> type:
    target = find_target(node[TARGET], path)
    return target if isinstance(target, type) else object


def check_predicts_x0(cfg: DictConfig, objective: Objective) -> None:
    """Refuse another prediction than ``sample`` for the networks that need it."""
    choice = str(cfg.net[TARGET]).rpartition(".")[2]
    needs = {"DetailNet": "detail", "load_experts": "experts"}
    if choice in needs and not (objective.prediction.name == objective.sampled_as.name == "sample"):
        raise UserError(
            f"net={needs[choice]} needs prediction=sample, and no prediction.sampled_as"
        )


def check_experts(net: nn.Module, objective: Objective, crops: Crops | None) -> None:
    """Refuse noise levels that an expert for low noise is never used at."""
    if not isinstance(net, NoiseExperts):
        return
    switch, max_noise = net.switch, objective.max_noise
    if max_noise is None or max_noise < switch or (max_noise > switch and not crops):
        exactly = "at least that" if crops else "that, where data.crop_size is null"
        raise UserError(
            f"net=experts uses its expert for low noise below net.switch={switch}:"
            f" prediction.max_noise must be {exactly}, got {max_noise}"
        )


def check_crops(net: nn.Module, datamodule: DataModule) -> None:
    """Refuse crops that the network does not take, or not of that size."""
    crops, image_size = datamodule.crops, datamodule.image_size
    if crops is None:
        return
    if not isinstance(net, CropNetwork):
        raise UserError("data.crop_size is for net=detail and net=experts alone; leave it null")
    if crops.size > image_size or crops.size % net.crop_multiple:
        raise UserError(
            f"data.crop_size must be a multiple of {net.crop_multiple} of at most"
            f" data.image_size={image_size}, got {crops.size}"
        )


def check_sampling(cfg: DictConfig, module: DiffusionModule | GANModule) -> dict[str, Any]:
    """Check how the weights are to be published, before they are trained.

    Returns:
        The default sampling settings of the weights; empty for a GAN.

    Raises:
        UserError: The model cannot sample so.
    """
    if not isinstance(module, DiffusionModule):
        return {}
    sampler = instantiate(cfg.sampler, "sampler")
    guidance = instantiate(cfg.guidance, "guidance")
    with named("sampler", {"steps": "sampler.steps"}):
        module.pipeline(module.net, sampler, guidance)
    described: dict[str, Any] = sampler.description() | guidance.description()
    return described | {"label_drop": guidance.label_drop}


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
    if evaluator.vocabulary != datamodule.vocabulary:
        raise UserError(
            f"evaluator: {evaluator.name} does not classify the labels of the data; name one that"
            " does with evaluator._target_=…"
        )
    is_iclevr = datamodule.vocabulary == ICLEVR_LABELS
    scoring: Scoring = instantiate(
        node,
        "callbacks.scoring",
        conditions=datamodule.conditions(),
        evaluator=evaluator,
        second=load_second_evaluator() if is_iclevr else None,
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
    *more: L.Callback,
) -> list[L.Callback]:
    """Build all callbacks, in the order in which they see each step.

    Args:
        cfg: The settings of the run.
        folder: Of the run.
        settings: What must match on resume.
        sampling: The default sampling settings of the weights.
        more: Callbacks that see a step before those of the config, such as the scoring.

    Raises:
        UserError: A setting is out of range, or a callback is missing that every run needs.
    """
    every_n_steps = cfg.trainer.log_every_n_steps
    check_at_least_1("trainer.log_every_n_steps", every_n_steps)
    given = {"settings": settings, "sampling": sampling}
    built = {
        str(name): instantiate(
            node,
            f"callbacks.{name}",
            folder=folder / "checkpoints" if name == "checkpoint" else folder,
            **(given if name == "checkpoint" else {}),
        )
        for name, node in cfg.callbacks.items()
        if node is not None and name != "scoring"
    }
    if "checkpoint" not in built:
        raise UserError("callbacks.checkpoint is needed: a run is resumed from its checkpoints")
    checkpoints = built.pop("checkpoint")
    ema = [built.pop("ema")] if "ema" in built else []
    throughput = Throughput(every_n_steps)
    result = [
        FitToData(),
        NaNGuard(every_n_steps),
        limits(cfg),
        StopOnSignal(checkpoints, every_n_steps),
        *ema,
        throughput,
        *more,
        *built.values(),
        checkpoints,
    ]
    if not cfg.trainer.enable_progress_bar:
        return result
    if sys.stderr.isatty():
        return [*result, ProgressBar(throughput)]
    return [*result, ProgressInLines(throughput, cfg.trainer.max_steps)]


def run_settings(
    cfg: DictConfig, module: TrainedModule, datamodule: DataModule | EvaluatorData
) -> dict[str, Any]:
    """The settings that must match on resume, as plain values."""
    result = module.description()
    if isinstance(module, DiffusionModule):
        objective = module.objective
        result |= {name: getattr(objective, name) for name in OBJECTIVE_SETTINGS}
        # Older checkpoints do not have these.
        if objective.max_weight != MAX_WEIGHT:
            result["max_weight"] = objective.max_weight or "unbounded"
        crops = datamodule.crops if isinstance(datamodule, DataModule) else None
        if crops is not None:
            result |= {"crop_size": crops.size, "crop_near_objects": crops.near_objects}
        result["label_drop"] = module.label_drop
    if cfg.get("fixed_noise", False):
        result["fixed_noise"] = True
    if cfg.trainer.overfit_batches:
        result["overfit_batches"] = cfg.trainer.overfit_batches
    ema = cfg.callbacks.get("ema")
    return result | {
        "seed": cfg.seed,
        "data": datamodule.identity(),
        "optimizer": without_target(cfg.optimizer),
        "ema": None if ema is None else without_target(ema),
        "accumulate_grad_batches": cfg.trainer.accumulate_grad_batches,
        "batch_size": datamodule.batch_size,
    }


def without_target(node: DictConfig) -> dict[str, Any]:
    """The settings of a node, without its class."""
    return {name: value for name, value in plain(node).items() if name != TARGET}


def check_loggers(cfg: DictConfig) -> None:
    """Check the settings of the W&B logger before the run begins.

    Raises:
        UserError: W&B refuses them.
    """
    node = cfg.logger.get("wandb")
    if node is not None and find_target(node[TARGET], "logger.wandb") is wandb_logger:
        check_wandb_settings(**without_target(node))


def build_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """``metrics.csv`` always, and each logger of the config."""
    result: list[Logger] = [MetricsCSV(folder / "metrics.csv")]
    for name, node in cfg.logger.items():
        if node is not None:
            path = f"logger.{name}"
            result.append(instantiate(node, path, folder=folder, **missing_folder(node, folder)))
    return result


def missing_folder(node: DictConfig, folder: Path) -> dict[str, str]:
    """The run folder, for a logger of Lightning's that must be told a ``save_dir``."""
    known, _ = parameters(find_target(node[TARGET], "logger"))
    needs = "save_dir" in known and known["save_dir"].is_required
    return {"save_dir": str(folder)} if needs else {}


@contextmanager
def running(cfg: DictConfig, folder: Path, trainer: L.Trainer) -> Iterator[None]:
    """Inside, a run has its folder to itself, with its settings written and its loggers open.

    Raises:
        UserError: Another process runs there.
    """
    with ExitStack() as stack:
        if trainer.is_global_zero:
            stack.enter_context(used_alone(folder))
            if is_resumed(cfg):
                remove_partial(folder)
            elif (folder / CONFIG).exists():
                raise UserError(f"{folder}: another run has begun there; name another folder")
            write_text(folder / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
            if not in_a_sweep():  # its jobs keep theirs from before the first check
                launcher = launchers.torchrun_id()
                more = {} if launcher is None else {"launcher": launcher}
                stack.enter_context(status_kept(folder, overrides(), **more))
        for callback in callbacks_of(trainer, StopOnSignal):
            stack.enter_context(callback.handled(trainer))
        trainer.loggers = build_loggers(cfg, folder)
        exit_code = 1
        try:
            yield
            exit_code = 0
        finally:
            close_loggers(trainer.loggers, exit_code)
