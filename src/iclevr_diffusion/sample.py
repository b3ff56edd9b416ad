"""Draw: ``python -m iclevr_diffusion.sample labels='red cube, blue sphere' n=8``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command
from iclevr_diffusion.cli.schema import Sample
from iclevr_diffusion.utils.imports import import_diffusers


@command("sample", Sample)
def main(cfg: DictConfig) -> None:
    # Here, so that --help need not wait for torch.
    import_diffusers()
    from iclevr_diffusion.cli.tasks.sample import run

    run(cfg)


if __name__ == "__main__":
    main()
