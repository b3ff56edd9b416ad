"""Make the evaluator: ``python -m iclevr_diffusion.train_evaluator data.root=data/iclevr``."""

from omegaconf import DictConfig

from iclevr_diffusion.door import door
from iclevr_diffusion.settings import TrainEvaluator


@door("train_evaluator", TrainEvaluator)
def main(cfg: DictConfig) -> None:
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.tasks.train_evaluator import run

    run(cfg)


if __name__ == "__main__":
    main()
