"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, run_folder
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.run_dir import is_resumed
from iclevr_diffusion.cli.schema import Train


@command("train", Train)
def main(cfg: DictConfig) -> float | None:
    """Train a diffusion model or a GAN, score it, and save its results."""
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli.cross_checks import check_sampling, refuse_sweep_over_devices
    from iclevr_diffusion.cli.fast_dev_run import shorten
    from iclevr_diffusion.cli.instantiate import instantiate, plain
    from iclevr_diffusion.cli.provenance import provenance
    from iclevr_diffusion.cli.resume_settings import run_settings
    from iclevr_diffusion.cli.running import check_loggers, running
    from iclevr_diffusion.cli.trainer import make_trainer
    from iclevr_diffusion.cli.training_wiring import (
        build_callbacks,
        build_datamodule,
        build_module,
        build_scoring,
        is_gan,
    )
    from iclevr_diffusion.training.fit import check_limits, fit
    from iclevr_diffusion.training.resume import find_checkpoint
    from iclevr_diffusion.training.save_results import save_results, score
    from iclevr_diffusion.utils.files import SUMMARY

    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        shorten(cfg)
        datamodule = build_datamodule(cfg)
        module = build_module(cfg, datamodule)
        check_loggers(cfg)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        sampling = check_sampling(cfg, module)
        settings = run_settings(cfg, module, datamodule)
        scoring = build_scoring(cfg, folder, module, datamodule, evaluator)
        callbacks = build_callbacks(cfg, folder, settings, sampling, scoring)
        trainer = make_trainer(cfg, folder, callbacks, is_gan(cfg))
        datamodule.check(trainer.world_size)
        check_limits(trainer, datamodule.batches(trainer.world_size))
        resumed = None
        if is_resumed(cfg):
            resumed = find_checkpoint(folder, settings, trainer.world_size)
        datamodule.prepare_data()  # problems with the data are reported before the run begins
    with running(cfg, folder, trainer):
        if trainer.is_global_zero and datamodule.held_out:
            print(datamodule.held_out)
        hyperparameters = plain(cfg) | {"scored_by": evaluator.name} | provenance(datamodule)
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / SUMMARY)
        if trainer.is_global_zero and seconds is not None:
            data = cfg.data.get("root") or datamodule.description()["source"]
            save_results(
                folder, trainer, module, datamodule, scoring, sampling, seconds, cfg.name, data
            )
    return score(folder) if trainer.is_global_zero else None


if __name__ == "__main__":
    main()
