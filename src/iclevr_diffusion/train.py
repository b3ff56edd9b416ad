"""Train: ``python -m iclevr_diffusion.train experiment=quickstart``."""

from omegaconf import DictConfig

from iclevr_diffusion.door import door
from iclevr_diffusion.settings import Train


@door("train", Train)
def main(cfg: DictConfig) -> float | None:
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.tasks.train import run

    return run(cfg)


if __name__ == "__main__":
    main()
