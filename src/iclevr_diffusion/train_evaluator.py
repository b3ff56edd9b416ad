"""Train the evaluator: ``python -m iclevr_diffusion.train_evaluator data.root=data/iclevr``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, run_folder
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import TrainEvaluator


@command("train_evaluator", TrainEvaluator)
def main(cfg: DictConfig) -> None:
    """Train an evaluator and measure it on held-out frames."""
    # Here, so that --help need not wait for torch.
    import torch

    from iclevr_diffusion.cli.callback_wiring import build_callbacks
    from iclevr_diffusion.cli.cross_checks import check_decay, refuse_sweep_over_devices
    from iclevr_diffusion.cli.fast_dev_run import shorten
    from iclevr_diffusion.cli.instantiate import instantiate, plain
    from iclevr_diffusion.cli.provenance import provenance
    from iclevr_diffusion.cli.resume_settings import run_settings
    from iclevr_diffusion.cli.running import check_loggers, prepare, running
    from iclevr_diffusion.cli.trainer import make_trainer
    from iclevr_diffusion.training.evaluator import EvaluatorModule
    from iclevr_diffusion.training.fit import fit
    from iclevr_diffusion.training.save_evaluator import FIGURES, save_evaluator_results

    folder = run_folder()
    refuse_sweep_over_devices(cfg)
    with user_settings():
        shorten(cfg)
        check_loggers(cfg)
        torch.manual_seed(cfg.seed)  # of the initial weights
        net = instantiate(cfg.net, "net")
        datamodule = instantiate(
            cfg.data,
            "data",
            cache=cfg.paths.cache,
            seed=cfg.seed,
            train_on=cfg.train_on,
            with_unclear=net.unclear,
        )
        optimizer = instantiate(cfg.optimizer, "optimizer")
        module = EvaluatorModule(net, optimizer, cfg.seed, cfg.trainer.max_steps)
        check_decay(cfg, module)
        settings = run_settings(cfg, module, datamodule)
        trainer = make_trainer(cfg, folder, build_callbacks(cfg, folder, settings, {}))
        resumed = prepare(cfg, folder, trainer, datamodule, settings)
    with running(cfg, folder, trainer):
        hyperparameters = plain(cfg) | provenance(datamodule)
        seconds = fit(trainer, module, datamodule, resumed, hyperparameters, folder / FIGURES)
        if trainer.is_global_zero and seconds is not None:
            save_evaluator_results(folder, trainer, module, datamodule, seconds)


if __name__ == "__main__":
    main()
