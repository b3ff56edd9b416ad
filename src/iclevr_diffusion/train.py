"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, run_folder
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import Train


@command("train", Train)
def main(cfg: DictConfig) -> float | None:
    """Train a diffusion model or a GAN, score it, and save its results."""
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli import training_wiring as wiring
    from iclevr_diffusion.cli.callback_wiring import build_callbacks, build_scoring
    from iclevr_diffusion.cli.cross_checks import (
        check_decay,
        default_sampling,
        refuse_sweep_over_devices,
    )
    from iclevr_diffusion.cli.fast_dev_run import shorten
    from iclevr_diffusion.cli.instantiate import instantiate, plain
    from iclevr_diffusion.cli.provenance import provenance
    from iclevr_diffusion.cli.resume_settings import run_settings
    from iclevr_diffusion.cli.running import check_loggers, prepare, running
    from iclevr_diffusion.cli.trainer import make_trainer
    from iclevr_diffusion.training.fit import fit
    from iclevr_diffusion.training.save_results import FinishedRun, save_results, score
    from iclevr_diffusion.utils.files import SUMMARY

    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        shorten(cfg)
        datamodule = wiring.build_datamodule(cfg)
        module = wiring.build_module(cfg, datamodule)
        check_decay(cfg, module)
        check_loggers(cfg)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        sampling = default_sampling(cfg, module)
        settings = run_settings(cfg, module, datamodule)
        scoring = build_scoring(cfg, folder, module, datamodule, evaluator)
        callbacks = build_callbacks(cfg, folder, settings, sampling, scoring)
        trainer = make_trainer(cfg, folder, callbacks, wiring.is_gan(cfg))
        resumed = prepare(cfg, folder, trainer, datamodule, settings)
    with running(cfg, folder, trainer):
        if trainer.is_global_zero and datamodule.held_out:
            print(datamodule.held_out)
        hyperparameters = plain(cfg) | {"scored_by": evaluator.name} | provenance(datamodule)
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / SUMMARY)
        if trainer.is_global_zero and seconds is not None:
            run = FinishedRun(folder, trainer, module, datamodule, scoring)
            data = cfg.data.get("root") or datamodule.description()["source"]
            save_results(run, sampling, seconds, cfg.name, data)
    return score(folder) if trainer.is_global_zero else None


if __name__ == "__main__":
    main()
