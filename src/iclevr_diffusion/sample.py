"""Draw: ``python -m iclevr_diffusion.sample labels='red cube, blue sphere' n=8``."""

from omegaconf import DictConfig

from iclevr_diffusion.door import door
from iclevr_diffusion.imports import import_diffusers
from iclevr_diffusion.settings import Sample


@door("sample", Sample)
def main(cfg: DictConfig) -> None:
    # Here, so that --help need not wait for torch.
    import_diffusers()
    from iclevr_diffusion.tasks.sample import run

    run(cfg)


if __name__ == "__main__":
    main()
