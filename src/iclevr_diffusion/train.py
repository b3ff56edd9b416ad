"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command
from iclevr_diffusion.cli.schema import Train


@command("train", Train)
def main(cfg: DictConfig) -> float | None:
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli.tasks.train import run

    return run(cfg)


if __name__ == "__main__":
    main()
