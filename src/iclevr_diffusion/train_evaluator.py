"""Make the evaluator: ``python -m iclevr_diffusion.train_evaluator data.root=data/iclevr``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command
from iclevr_diffusion.cli.schema import TrainEvaluator


@command("train_evaluator", TrainEvaluator)
def main(cfg: DictConfig) -> None:
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli.tasks.train_evaluator import run

    run(cfg)


if __name__ == "__main__":
    main()
