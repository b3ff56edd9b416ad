"""From a composed config to the callbacks of a training."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from iclevr_diffusion.cli.instantiate import instantiate, named
from iclevr_diffusion.cli.trainer import limits
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.evaluation.classifier import (
    Evaluator,
    check_vocabulary,
    second_evaluator,
)
from iclevr_diffusion.training.callbacks.checkpoint import BEST
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.callbacks.preemption import StopOnSignal
from iclevr_diffusion.training.callbacks.progress import ProgressBar, ProgressInLines, Throughput
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.gan import GANModule
from iclevr_diffusion.utils.checks import check_at_least
from iclevr_diffusion.utils.errors import UserError


def build_scoring(
    cfg: DictConfig,
    folder: Path,
    module: DiffusionModule | GANModule,
    datamodule: DataModule,
    evaluator: Evaluator,
) -> Scoring:
    """Build the callback that generates and scores images.

    Raises:
        UserError: It is missing, or the model cannot sample with its settings.
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
        best=folder / "checkpoints" / BEST,
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

    The arguments of :data:`.schema.SCORED` are passed to each callback of the config whose
    constructor has parameters of these names.

    Args:
        cfg, folder: Of the run.
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
    built = build_named(cfg, folder, given)
    checkpoints, ema = built.pop("checkpoint"), built.pop("ema", None)
    throughput = Throughput(every_n_steps)
    callbacks: list[L.Callback | None] = [
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


def build_named(cfg: DictConfig, folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Build the callbacks that the config names, by name; the scoring has been built before.

    Raises:
        UserError: A setting is out of range, or ``checkpoint`` is missing.
    """
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
    return built


def build_progress(cfg: DictConfig, throughput: Throughput) -> L.Callback | None:
    """Return the progress bar, or progress in lines for output that is not a terminal."""
    if not cfg.trainer.enable_progress_bar:
        return None
    if sys.stderr.isatty():
        return ProgressBar(throughput)
    return ProgressInLines(throughput, cfg.trainer.max_steps)
