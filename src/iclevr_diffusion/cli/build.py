"""From a composed config to ready objects. Only the commands call this."""

import logging
import platform
import re
import sys
import warnings
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, OmegaConf
from torch import nn

from iclevr_diffusion import __version__
from iclevr_diffusion.cli.jobs import in_a_sweep, shares_its_process
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.settings import plain
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.datamodule import ICLEVRDataModule
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.data.types import Source
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.loss import MAX_WEIGHT, Objective
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule, schedule_config
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.models.dcgan import Discriminator, Generator
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.protocol import CropNetwork
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.training import launchers
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints, WholeFile
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.limits import Limits
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
    tensorboard_logger,
    wandb_logger,
)
from iclevr_diffusion.training.optimizer import OptimizerSettings
from iclevr_diffusion.utils.closest import closest
from iclevr_diffusion.utils.environment import device_name
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, remove_partial, used_alone, write_text
from iclevr_diffusion.utils.lightning_internals import callbacks_of
from iclevr_diffusion.utils.status import status_kept

DIFFUSION_ONLY = ("schedule", "prediction", "sampler", "guidance")
PREDICTION_SETTINGS = (
    "min_snr_gamma",
    "data_std",
    "timestep_shift",
    "max_noise",
    "noise_mean",
    "noise_std",
)
Precision = Literal["bf16-mixed", "16-mixed", "32-true"]
STRATEGIES = (
    "auto",
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
)
PRECISIONS = ("auto", "bf16-mixed", "16-mixed", "32-true", "bf16", "16", "32")


def source(cfg: DictConfig) -> Source:
    """The data source; it is not read yet.

    Raises:
        UserError: ``data=iclevr`` without a ``data.root``, or ``data=synthetic`` with one.
    """
    if cfg.data.source not in ("auto", "iclevr", "synthetic"):
        raise UserError(f"data.source must be auto, iclevr or synthetic, got {cfg.data.source!r}")
    if cfg.data.source == "iclevr" and cfg.data.root is None:
        raise UserError(
            "data=iclevr needs data.root=…, the folder with iclevr/*.png, train.json, test.json,"
            " new_test.json and objects.json; without the course's data use data=synthetic"
        )
    if cfg.data.source == "synthetic" and cfg.data.root is not None:
        raise UserError("data=synthetic takes no data.root; leave one of the two out")
    return choose_source(
        cfg.data.root, cfg.data.image_size, cfg.paths.cache, cfg.data.sequences, cfg.data.seed
    )


def refuse_sweep_over_devices(cfg: DictConfig) -> None:
    """Refuse a sweep whose jobs would share several processes.

    Lightning starts the other processes with the whole command line: each would run a sweep of its
    own, and the jobs would mix.

    Raises:
        UserError: it is one.
    """
    if shares_its_process() and are_several(cfg.trainer.devices, cfg.trainer.num_nodes):
        raise UserError(
            "a sweep over several devices needs a launcher that gives each job a process of its own"
            " (hydra/launcher=joblib, submitit_slurm, ray); or use trainer.devices=1"
        )


def datamodule(cfg: DictConfig) -> ICLEVRDataModule:
    return ICLEVRDataModule(
        source(cfg),
        batch_size=cfg.data.batch_size,
        val_fraction=cfg.data.val_fraction,
        device_resident=cfg.data.device_resident,
        seed=cfg.seed,
        with_positions=takes_positions(cfg),
    )


def module(cfg: DictConfig) -> DiffusionModule | GANModule:
    """The networks and how they are trained: a diffusion model, or with ``net=dcgan`` a GAN.

    Raises:
        UserError: settings that belong to the other one.
        ValueError: a setting is out of range.
    """
    torch.manual_seed(cfg.seed)  # of the initial weights
    return gan_module(cfg) if is_gan(cfg) else diffusion_module(cfg)


def is_gan(cfg: DictConfig) -> bool:
    """Whether the network is a GAN's: those alone have latent numbers."""
    return "latent" in cfg.net


def kind_of_net(settings: Container[str]) -> Any:
    """The class that settings of these names are for."""
    if "switch" in settings:
        return NoiseExperts
    if "depth" in settings:
        return UViT
    return DetailNet if "data_std" in settings else ConditionalUNet


def takes_positions(cfg: DictConfig) -> bool:
    """Whether the network is told where objects stand."""
    return kind_of_net(cfg.net) in (DetailNet, NoiseExperts) or bool(
        cfg.net.get("positions", False)
    )


def has_experts(cfg: DictConfig) -> bool:
    """Whether the network is made of experts by noise level."""
    return kind_of_net(cfg.net) is NoiseExperts


def refuse_ignored_settings(cfg: DictConfig) -> None:
    """Refuse a schedule, sampler, … chosen beside a GAN's experiment: its nulls would hide them.

    Raises:
        UserError: the command line has one.
    """
    for word in task_words() if is_gan(cfg) else ():
        if re.split(r"[@.=]", word.lstrip("+~"))[0] in DIFFUSION_ONLY:
            raise UserError(f"{word}: experiment=dcgan is a GAN, which has none; leave it out")


def gan_module(cfg: DictConfig) -> GANModule:
    if any(cfg[name] is not None for name in DIFFUSION_ONLY):
        raise UserError(
            f"net=dcgan is a GAN, which has no {', '.join(DIFFUSION_ONLY)}: use experiment=dcgan"
        )
    if cfg.trainer.accumulate_grad_batches != 1:
        raise UserError("trainer.accumulate_grad_batches must be 1 for a GAN")
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise UserError("a GAN needs trainer.max_epochs: net.batch_sizes are spread over them")
    settings = plain(cfg.net)
    sizes = settings.pop("batch_sizes")
    generator = Generator(**settings)
    if generator.image_shape[1] != cfg.data.image_size:
        raise UserError(
            f"net.channels makes images of {generator.image_shape[1]} pixels,"
            f" data.image_size is {cfg.data.image_size}"
        )
    discriminator = Discriminator(settings["channels"])
    if cfg.compile:
        generator.compile()
        discriminator.compile()
    module = GANModule(
        generator,
        discriminator,
        OptimizerSettings(**plain(cfg.optimizer)),
        sizes,
        cfg.trainer.max_epochs,
        seed=cfg.seed,
        max_steps=cfg.trainer.max_steps,
        fixed_noise=cfg.fixed_noise,
    )
    if any(cfg.data.batch_size % size for size in sizes):
        raise UserError(
            f"data.batch_size={cfg.data.batch_size} must be a multiple of each of"
            f" net.batch_sizes={sizes}"
        )
    return module


def diffusion_module(cfg: DictConfig) -> DiffusionModule:
    if any(cfg[name] is None for name in DIFFUSION_ONLY):
        raise UserError(f"a diffusion model needs {', '.join(DIFFUSION_ONLY)}; one of them is null")
    schedule = NoiseSchedule(**plain(cfg.schedule))
    objective = Objective(
        schedule,
        cfg.prediction.name,
        cfg.prediction.min_snr_gamma,
        cfg.prediction.data_std,
        cfg.prediction.timestep_shift,
        cfg.prediction.max_weight,
        cfg.prediction.max_noise,
        cfg.prediction.noise_mean,
        cfg.prediction.noise_std,
        cfg.prediction.sampled_as,
    )
    net = diffusion_net(cfg, objective)
    if cfg.compile:
        net.compile()  # in position: checkpoints keep their keys
    return DiffusionModule(
        net,
        objective,
        OptimizerSettings(**plain(cfg.optimizer)),
        label_drop=cfg.guidance.label_drop,
        seed=cfg.seed,
        max_steps=cfg.trainer.max_steps,
        crops=crops(cfg, net),
        fixed_noise=cfg.fixed_noise,
    )


def diffusion_net(cfg: DictConfig, objective: Objective) -> nn.Module:
    """The network, untrained but for a coarse expert, which comes from its own weights.

    Raises:
        UserError: the coarse expert's weights do not fit the settings.
        ValueError: a setting is out of range.
    """
    if not has_experts(cfg):
        kind, settings = kind_of_net(cfg.net), plain(cfg.net)
        if kind is DetailNet:
            if objective.prediction.name != "sample" or cfg.prediction.sampled_as is not None:
                raise UserError("net=detail needs prediction=sample, and no prediction.sampled_as")
            settings |= {"timesteps": objective.schedule.timesteps, "positions": True}
        net: nn.Module = kind(image_size=cfg.data.image_size, **settings)
        return net
    if objective.prediction.name != "sample" or cfg.prediction.sampled_as is not None:
        raise UserError("net=experts needs prediction=sample, and no prediction.sampled_as")
    switch, max_noise = cfg.net.switch, objective.max_noise
    if max_noise is None or max_noise < switch or (max_noise > switch and not cfg.data.crop_size):
        exactly = "at least that" if cfg.data.crop_size else "that, where data.crop_size is null"
        raise UserError(
            f"net=experts uses its expert for low noise below net.switch={switch}:"
            f" prediction.max_noise must be {exactly}, got {max_noise}"
        )
    coarse = coarse_expert(cfg, objective)
    settings = {key: value for key, value in coarse.config.items() if not key.startswith("_")}
    settings.pop("image_size")
    experts: NoiseExperts = NoiseExperts(
        settings,
        plain(cfg.net.detail) | {"timesteps": objective.schedule.timesteps},
        cfg.data.image_size,
        cfg.net.switch,
    )
    experts.coarse.load_state_dict(coarse.state_dict())
    return experts


def coarse_expert(cfg: DictConfig, objective: Objective) -> UViT:
    """The U-ViT at ``net.coarse_weights``, or the coarse expert of the experts there.

    Raises:
        UserError: there is none, or it was trained for something else.
    """
    model = load_model(cfg.net.coarse_weights)
    where = f"net.coarse_weights={cfg.net.coarse_weights}"
    net: Any = model.net.coarse if isinstance(model.net, NoiseExperts) else model.net
    if not isinstance(model, Model) or not isinstance(net, UViT) or net.layout is None:
        raise UserError(f"{where}: these weights are not of a U-ViT with positions")
    if model.prediction is not objective.prediction:
        raise UserError(f"{where} predict {model.prediction.name}, not sample")
    if schedule_config(model.schedule) != schedule_config(objective.schedule):
        raise UserError(f"{where} were trained with another schedule: {model.schedule.config}")
    if net.config["image_size"] != cfg.data.image_size:
        raise UserError(f"{where} are of data.image_size={net.config['image_size']}")
    coarse: UViT = net
    return coarse


def crops(cfg: DictConfig, net: nn.Module) -> Crops | None:
    """How training frames are cropped.

    Raises:
        UserError: the network takes no crops, or none of that size.
        ValueError: a setting is out of range.
    """
    if cfg.data.crop_size is None:
        return None
    if not isinstance(net, CropNetwork):
        raise UserError("data.crop_size is for net=detail and net=experts alone; leave it null")
    size, multiple = cfg.data.crop_size, net.crop_multiple
    if size > cfg.data.image_size or size % multiple:
        raise UserError(
            f"data.crop_size must be a multiple of {multiple} of at most"
            f" data.image_size={cfg.data.image_size}, got {size}"
        )
    return Crops(size, cfg.data.crop_near_objects)


def callbacks(
    cfg: DictConfig, folder: Path, settings: dict[str, Any], *more: L.Callback
) -> list[L.Callback]:
    """What every training needs, and ``more``, in the order in which they see each step.

    Args:
        settings: what a run that is resumed has to have in common with this one.

    Raises:
        ValueError: a setting is out of range.
    """
    every_n_steps = cfg.trainer.log_every_n_steps
    check_at_least_1("trainer.log_every_n_steps", every_n_steps)
    throughput = Throughput(every_n_steps)
    keep = plain(cfg.callbacks.checkpoint)
    checkpoints = Checkpoints(folder / "checkpoints", settings, sampling(cfg), **keep)
    result = [
        NaNGuard(every_n_steps),
        limits(cfg),
        StopOnSignal(checkpoints, every_n_steps),
        EMA(cfg.callbacks.ema.decay),
        throughput,
        *more,
        checkpoints,
    ]
    if not cfg.trainer.enable_progress_bar:
        return result
    if sys.stderr.isatty():
        return [*result, ProgressBar(throughput)]
    return [*result, ProgressInLines(throughput, cfg.trainer.max_steps)]


def limits(cfg: DictConfig) -> Limits:
    """The callback that ends the training by steps or time.

    Raises:
        ValueError: a setting is out of range.
    """
    settings = plain(cfg.trainer)
    names = ("max_steps", "max_time", "min_epochs", "min_steps")
    return Limits(
        **{name: settings[name] for name in names}, every_n_steps=settings["log_every_n_steps"]
    )


def scoring(
    cfg: DictConfig,
    folder: Path,
    module: DiffusionModule | GANModule,
    conditions: dict[str, list[LabelSet]],
    evaluator: Evaluator,
    second: Evaluator | None = None,
) -> Scoring:
    """The callback that draws and scores.

    Raises:
        ValueError: a setting is out of range.
    """
    settings = cfg.callbacks.scoring
    if settings.max_conditions is not None:
        check_at_least_1("callbacks.scoring.max_conditions", settings.max_conditions)
        conditions = {name: sets[: settings.max_conditions] for name, sets in conditions.items()}
    if isinstance(module, GANModule):
        sampler, how_guided = None, None
        module.pipeline(module.net, layout=settings.layout)
        if settings.sampler is not None:
            raise UserError("callbacks.scoring.sampler must be null for a GAN")
    elif settings.sampler is None:
        raise UserError("callbacks.scoring.sampler is null; a diffusion model needs one")
    else:
        sampler = Sampler(**plain(settings.sampler))
        how_guided = guidance(cfg)
        # Refuses what it cannot do.
        module.pipeline(module.net, sampler, how_guided, settings.layout)
    return Scoring(
        conditions,
        evaluator,
        sampler,
        how_guided,
        settings.every_n_epochs,
        folder / "images",
        folder / "checkpoints" / "best.ckpt",
        settings.seed,
        settings.layout,
        second,
    )


def sampling(cfg: DictConfig) -> dict[str, Any]:
    """How the weights of a run are to be drawn with; empty where they are no diffusion model's."""
    if cfg.get("sampler") is None:
        return {}
    result = Sampler(**plain(cfg.sampler)).description()
    return result | guidance(cfg).description() | {"label_drop": cfg.guidance.label_drop}


def guidance(cfg: DictConfig) -> Guidance:
    """How a run's own drawings are guided.

    Raises:
        ValueError: a setting is out of range.
    """
    return Guidance(cfg.guidance.scale, cfg.guidance.min_noise, cfg.guidance.max_noise)


def check_sampling(cfg: DictConfig, module: DiffusionModule | GANModule) -> None:
    """Check how the weights are to be published, before they are trained.

    Raises:
        ValueError: the module cannot draw so.
    """
    if isinstance(module, DiffusionModule):
        sampler = Sampler(**plain(cfg.sampler))
        module.pipeline(module.net, sampler, guidance(cfg))


def run_settings(cfg: DictConfig, module: TrainedModule, data: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run has to have in common with the run it goes on with, as plain values.

    Args:
        data: what the training frames are.
    """
    diffusion: dict[str, Any] = {}
    if isinstance(module, DiffusionModule):
        for name in PREDICTION_SETTINGS:
            diffusion[name] = cfg.prediction[name]
        # Those of older checkpoints are not in them.
        if cfg.prediction.max_weight != MAX_WEIGHT:
            diffusion["max_weight"] = cfg.prediction.max_weight or "unbounded"
        if cfg.data.crop_size is not None:
            for name in ("crop_size", "crop_near_objects"):
                diffusion[name] = cfg.data[name]
        diffusion["label_drop"] = cfg.guidance.label_drop
    debugging = {
        name: value
        for name, value in (
            ("fixed_noise", cfg.get("fixed_noise", False)),
            ("overfit_batches", cfg.trainer.overfit_batches),
        )
        if value
    }
    return module.description() | {
        **diffusion,
        **debugging,
        "seed": cfg.seed,
        "data": data,
        "optimizer": plain(cfg.optimizer),
        "ema": plain(cfg.callbacks.ema),
        "accumulate_grad_batches": cfg.trainer.accumulate_grad_batches,
        "batch_size": cfg.data.batch_size,
    }


def check_at_least_1(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_loggers(cfg: DictConfig) -> None:
    """Check what goes to W&B, before the run begins.

    Raises:
        UserError: W&B does not take it.
    """
    if cfg.logger.wandb is not None:
        check_wandb_settings(**plain(cfg.logger.wandb))


def loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """``metrics.csv`` always; W&B and TensorBoard where the config names them."""
    result: list[Logger] = [MetricsCSV(folder / "metrics.csv")]
    if cfg.logger.wandb is not None:
        result.append(wandb_logger(folder, **plain(cfg.logger.wandb)))
    if cfg.logger.tensorboard is not None:
        result.append(tensorboard_logger(folder))
    return result


@contextmanager
def running(cfg: DictConfig, folder: Path, trainer: L.Trainer) -> Iterator[None]:
    """Inside, a run goes on in its folder: alone, with its settings written and its loggers open.

    Raises:
        UserError: another process runs there.
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
                stack.enter_context(status_kept(folder, task_words(), **more))
        for callback in callbacks_of(trainer, StopOnSignal):
            stack.enter_context(callback.handled(trainer))
        trainer.loggers = loggers(cfg, folder)
        exit_code = 1
        try:
            yield
            exit_code = 0
        finally:
            close_loggers(trainer.loggers, exit_code)


def trainer(cfg: DictConfig, folder: Path, callbacks: list[L.Callback]) -> L.Trainer:
    """The trainer, without loggers: those are opened last.

    Raises:
        UserError: Lightning refuses a setting.
        ValueError: a number is below 1.
    """
    _quiet_lightning()
    settings = plain(cfg.trainer)
    check_trainer(settings)
    # callbacks.limits and shorten() see to these.
    for name in ("max_steps", "max_time", "min_epochs", "min_steps", "fast_dev_run"):
        del settings[name]
    if settings["max_epochs"] is None:
        settings["max_epochs"] = -1
    if settings["profiler"] is not None:
        settings["profiler"] = profiler(settings["profiler"], folder / "profile")
    if settings["enable_model_summary"]:
        logging.getLogger("lightning.pytorch.callbacks.model_summary").setLevel(logging.INFO)
    several = are_several(settings["devices"], settings["num_nodes"])
    settings["strategy"] = strategy(settings["strategy"], several, is_gan(cfg))
    known = launchers.given_devices(settings["devices"])
    if known is not None:
        launchers.check_processes(known, settings["num_nodes"])
    precision = settings.pop("precision")
    if str(precision) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision must be one of {', '.join(PRECISIONS)}; got {precision}"
        )
    if str(precision) in ("16", "16-mixed") and not is_on_cuda(settings["accelerator"]):
        raise ValueError(
            f"trainer.precision={precision} needs a CUDA GPU; use trainer.precision=auto or 32-true"
        )
    if precision == "auto":
        precision = best_precision(settings["accelerator"])
    try:
        trainer = L.Trainer(
            **settings,
            precision=precision,
            callbacks=callbacks,
            plugins=[WholeFile(), launchers.cluster_environment()],
            default_root_dir=folder,  # under SLURM, Lightning would take what it finds elsewhere
            logger=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error
    launchers.check_processes(trainer.num_devices, settings["num_nodes"])
    launchers.meet()
    return trainer


def strategy(name: str, several: bool, gan: bool) -> str:
    """Lightning's strategy of that name, if it is one that a run can use.

    Args:
        several: whether there are several processes, as far as is known.
        gan: whether each loss leaves one network out.

    Raises:
        UserError: there is no such strategy, or its processes cannot train here.
    """
    known, lower = StrategyRegistry.available_strategies(), name.lower()
    if several and hasattr(sys, "ps1"):
        raise UserError(
            "several devices need a process for each, which a notebook or an interactive Python"
            " cannot start: run the command in a terminal, or use trainer.devices=1"
        )
    if lower in STRATEGIES:
        if gan and lower == "ddp_find_unused_parameters_false":
            raise UserError(
                f"trainer.strategy={name}: each loss of a GAN leaves one net out; use ddp"
            )
        return STRATEGIES[-1] if gan and several and lower in ("auto", "ddp") else lower
    if lower not in known:
        close = closest(lower, STRATEGIES)
        advice = f"did you mean {close[0]}?" if close else f"use {', '.join(STRATEGIES)}"
        raise UserError(f"trainer.strategy={name}: there is no such strategy; {advice}")
    if lower.startswith(("fsdp", "deepspeed")):
        why = "shares the weights out among devices, but EMA and checkpoints need them whole"
    elif lower.startswith("ddp_"):
        why = "copies this process, open files and all, where ddp starts the command once a device"
    else:
        why = "is for one kind of device, and auto chooses it where it is right"
    instead = "ddp" if lower.startswith(("fsdp", "deepspeed", "ddp")) or several else "auto"
    raise UserError(f"trainer.strategy={name} {why}: use trainer.strategy={instead}")


def check_trainer(settings: dict[str, Any]) -> None:
    """Check the numbers of the trainer's settings that Lightning takes as they are.

    Raises:
        ValueError: one is out of range, or the training would have no end.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        check_at_least_1(f"trainer.{name}", settings[name])
    if not settings["limit_train_batches"] > 0:
        raise ValueError(
            f"trainer.limit_train_batches must be above 0, got {settings['limit_train_batches']}"
        )
    if not settings["val_check_interval"] > 0:
        raise ValueError(
            f"trainer.val_check_interval must be above 0, got {settings['val_check_interval']};"
            " trainer.limit_val_batches=0 leaves validation out"
        )
    if settings["num_sanity_val_steps"] < -1:
        raise ValueError(
            "trainer.num_sanity_val_steps must be 0 or more, or -1 for all; got"
            f" {settings['num_sanity_val_steps']}"
        )
    epochs = settings["max_epochs"]
    if epochs is None or epochs == -1:
        if settings["max_steps"] == -1 and settings["max_time"] is None:
            raise ValueError(
                f"trainer.max_epochs={'null' if epochs is None else epochs} would train without"
                " end: set trainer.max_steps or trainer.max_time, too"
            )
    elif epochs < 1:
        raise ValueError(f"trainer.max_epochs must be at least 1, or -1; got {epochs}")
    elif epochs < (settings["min_epochs"] or 0):
        raise ValueError(
            f"trainer.min_epochs={settings['min_epochs']} is more than trainer.max_epochs={epochs}"
        )


def profiler(name: str, folder: Path) -> Profiler:
    """Lightning's profiler of that name; it writes to ``folder``.

    Raises:
        ValueError: there is none.
    """
    kinds: dict[str, type[SimpleProfiler | AdvancedProfiler | PyTorchProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
        "pytorch": PyTorchProfiler,
    }
    if name not in kinds:
        raise ValueError(f"trainer.profiler must be one of {', '.join(kinds)}; got {name!r}")
    return kinds[name](dirpath=folder, filename=name)


def shorten(cfg: DictConfig) -> None:
    """Let a run with ``trainer.fast_dev_run=n`` do n of everything: batches, samples, steps.

    Unlike Lightning, which leaves checkpoints out, such a run does all that a long one does. Of
    the loggers only those are on that the command line asks for.

    Raises:
        UserError: n is negative.
    """
    n = int(cfg.trainer.fast_dev_run)
    if n < 0:
        raise UserError(f"trainer.fast_dev_run must be true, false or at least 0, got {n}")
    if n == 0:
        return
    cfg.trainer.update(
        max_epochs=1,
        max_steps=-1,
        max_time=None,
        min_epochs=None,
        min_steps=None,
        limit_train_batches=n,
        limit_val_batches=n,
        check_val_every_n_epoch=1,
        val_check_interval=1.0,
        log_every_n_steps=1,
    )
    cfg.name = "debug"
    if not any(word.lstrip("+").startswith("logger") for word in task_words()):
        cfg.logger.update(wandb=None, tensorboard=None)
    if "published" in cfg:
        cfg.published = None
    scoring = cfg.callbacks.get("scoring")
    if scoring is not None:
        scoring.max_conditions = n
        if scoring.sampler is not None:
            scoring.sampler.steps = min(scoring.sampler.steps, max(2, n))


def task_words() -> list[str]:
    """The overrides of the command line, but for Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def _quiet_lightning() -> None:
    """Leave out what Lightning says of itself and of short epochs; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        r"`isinstance\(treespec",
        r"The number of training batches",
        r"The '\w+_dataloader' does not have many workers",
        r"Starting from v1.9.0, `tensorboardX`",
    ):
        warnings.filterwarnings("ignore", message)


def is_on_cuda(accelerator: str) -> bool:
    """Whether Lightning trains on a CUDA GPU with that ``trainer.accelerator``."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def best_precision(accelerator: str) -> Precision:
    """``bf16-mixed`` where the hardware multiplies in bfloat16, else the fastest that it does.

    That is ``16-mixed``, with a scaled loss, on CUDA GPUs before Ampere, else ``32-true``.
    """
    if is_on_cuda(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if native else "16-mixed"
    # Where a processor only emulates bfloat16, it is hundreds of times slower.
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    native = native or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16-mixed" if native else "32-true"


def machine(trainer: L.Trainer) -> dict[str, Any]:
    """What a run ran on."""
    device = trainer.strategy.root_device
    return {
        "device": device_name(device),
        "processes": trainer.world_size,
        "precision": trainer.precision,
    }


def versions() -> dict[str, str]:
    """What figures depend on, beside the settings."""
    return {
        "iclevr-diffusion": __version__,
        "torch": torch.__version__,
        "lightning": L.__version__,
        "python": platform.python_version(),
    }
