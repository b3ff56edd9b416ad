"""Measure weights: ``python -m iclevr_diffusion.evaluate weights=outputs/quickstart``.

Without ``weights``, those that come with the package.
"""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command
from iclevr_diffusion.cli.schema import Evaluate


@command("evaluate", Evaluate)
def main(cfg: DictConfig) -> None:
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli.tasks.evaluate import run

    run(cfg)


if __name__ == "__main__":
    main()
