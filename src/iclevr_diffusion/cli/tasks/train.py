"""Train a diffusion model or a GAN, score it, and leave its results."""

import json
from pathlib import Path

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import (
    run_folder,
    user_settings,
)
from iclevr_diffusion.cli.instantiate import instantiate, plain
from iclevr_diffusion.cli.results import save_results
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.trainer import make_trainer, shorten
from iclevr_diffusion.cli.wiring import (
    build_callbacks,
    build_datamodule,
    build_module,
    build_scoring,
    check_loggers,
    check_sampling,
    is_gan,
    refuse_sweep_over_devices,
    run_settings,
    running,
)
from iclevr_diffusion.data.conditions import CHOOSE_BY
from iclevr_diffusion.training.fit import check_limits, fit
from iclevr_diffusion.training.resume import find_checkpoint
from iclevr_diffusion.utils.files import SUMMARY


def run(cfg: DictConfig) -> float | None:
    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        shorten(cfg)
        datamodule = build_datamodule(cfg)
        module = build_module(cfg, datamodule)
        check_loggers(cfg)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        sampling = check_sampling(cfg, module)
        settings = run_settings(
            cfg, module, datamodule.identity(), datamodule.batch_size, datamodule.crops
        )
        scoring = build_scoring(cfg, folder, module, datamodule, evaluator)
        callbacks = build_callbacks(cfg, folder, settings, sampling, scoring)
        trainer = make_trainer(cfg, folder, callbacks, is_gan(cfg))
        datamodule.check(trainer.world_size)
        check_limits(trainer, datamodule.batches(trainer.world_size))
        resumed = None
        if is_resumed(cfg):
            resumed = find_checkpoint(folder, settings, trainer.world_size)
        datamodule.prepare_data()  # what is wrong with the data is said before the run begins
    with running(cfg, folder, trainer):
        hyperparameters = plain(cfg) | {"scored_by": evaluator.name}
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / SUMMARY)
        if trainer.is_global_zero and seconds is not None:
            save_results(
                cfg, folder, trainer, module, datamodule, evaluator, scoring, sampling, seconds
            )
    return score(folder) if trainer.is_global_zero else None


def score(folder: Path) -> float:
    """How well a finished run did: what a sweep shows, and a search makes as high as it can.

    The accuracy of its weights on the validation list. A search by a test list would train on it.
    """
    figures = json.loads((folder / SUMMARY).read_text("utf-8"))
    return float(figures["weights"]["scores"][f"score/{CHOOSE_BY}/accuracy"])
