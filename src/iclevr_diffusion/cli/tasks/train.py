"""Train a diffusion model or a GAN, score it, and leave its results."""

import json
from pathlib import Path

from omegaconf import DictConfig

from iclevr_diffusion.cli import build
from iclevr_diffusion.cli.command import (
    run_folder,
    user_settings,
)
from iclevr_diffusion.cli.results import save_results
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.settings import plain
from iclevr_diffusion.data.conditions import CHOOSE_BY, packaged_conditions
from iclevr_diffusion.evaluation.classifier import load_evaluator, load_second_evaluator
from iclevr_diffusion.training.fit import check_limits, fit
from iclevr_diffusion.training.resume import find_checkpoint
from iclevr_diffusion.utils.files import SUMMARY


def run(cfg: DictConfig) -> float | None:
    folder = run_folder()
    build.refuse_sweep_over_devices(cfg)
    with user_settings():
        build.shorten(cfg)
        datamodule = build.datamodule(cfg)
        module = build.module(cfg)
        build.refuse_ignored_settings(cfg)
        build.check_loggers(cfg)
        evaluator = load_evaluator(cfg.evaluator.checkpoint)
        build.check_sampling(cfg, module)
        settings = build.run_settings(cfg, module, datamodule.identity())
        conditions = datamodule.conditions() | {CHOOSE_BY: packaged_conditions(CHOOSE_BY)}
        second = load_second_evaluator()
        scoring = build.scoring(cfg, folder, module, conditions, evaluator, second)
        trainer = build.trainer(cfg, folder, build.callbacks(cfg, folder, settings, scoring))
        datamodule.check(trainer.world_size)
        check_limits(trainer, datamodule.batches(trainer.world_size))
        resumed = None
        if is_resumed(cfg):
            resumed = find_checkpoint(folder, settings, trainer.world_size)
        datamodule.prepare_data()  # what is wrong with the data is said before the run begins
    with build.running(cfg, folder, trainer):
        hyperparameters = plain(cfg) | {"scored_by": evaluator.name}
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / SUMMARY)
        if trainer.is_global_zero and seconds is not None:
            save_results(cfg, folder, trainer, module, datamodule, evaluator, seconds)
    return score(folder) if trainer.is_global_zero else None


def score(folder: Path) -> float:
    """How well a finished run did: what a sweep shows, and a search makes as high as it can.

    The accuracy of its weights on the validation list. A search by a test list would train on it.
    """
    figures = json.loads((folder / SUMMARY).read_text("utf-8"))
    return float(figures["weights"]["scores"][f"score/{CHOOSE_BY}/accuracy"])
