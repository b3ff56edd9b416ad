"""Generate images: ``python -m iclevr_diffusion.sample labels='red cube, blue sphere' n=8``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, refuse_several
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import Sample
from iclevr_diffusion.utils.imports import import_diffusers

MAX_IMAGES = 1024
GRID, STRIP, ANIMATION = "grid.png", "strip.png", "denoising.png"


@command("sample", Sample)
def main(cfg: DictConfig) -> None:
    """Generate images of one label set."""
    import_diffusers()
    # Here, so that --help need not wait for torch.
    from iclevr_diffusion.cli.instantiate import named
    from iclevr_diffusion.cli.output_dir import output_folder
    from iclevr_diffusion.cli.sampling import pipeline_of
    from iclevr_diffusion.data.negation import check_signed, encode_signed
    from iclevr_diffusion.diffusion.io import load_model
    from iclevr_diffusion.diffusion.prompts import parse_positions, snapped
    from iclevr_diffusion.diffusion.samplers import Step
    from iclevr_diffusion.evaluation.image_grid import Strip, grid, save_animation, save_image
    from iclevr_diffusion.utils.environment import choose_device
    from iclevr_diffusion.utils.progress_bar import progress

    with user_settings():
        check_request(cfg)
        model = load_model(cfg.weights)
        label_set = check_signed(cfg.labels, model.vocabulary)
        pipeline = pipeline_of(model, cfg)
        with named("labels", {}):
            pipeline.check_labels(encode_signed(label_set, model.vocabulary)[None])
        positions = None
        if cfg.positions is not None:
            given = parse_positions(cfg.positions, label_set, model.vocabulary)
            positions = snapped(given, pipeline.position_prior)
        device = choose_device(cfg.device)
    model.to(device)  # the pipeline's network, too
    strip, film = Strip(pipeline.steps), Strip(pipeline.steps, frames=24)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/sample") as out:
        with progress(cfg.n * pipeline.steps, "denoising step") as bar:

            def on_step(step: Step) -> None:
                bar.update(len(step.x0))
                strip(step)
                film(step)

            images = pipeline.generate(label_set, cfg.n, cfg.seed, positions, on_step)
        print(save_image(grid(images, columns=min(8, cfg.n)), out / GRID))
        if cfg.strip:
            print(save_image(strip.image(), out / STRIP))
        if cfg.animation:
            print(save_animation(film.animation(), out / ANIMATION))
    how = f"{pipeline}" if positions is None else f"{pipeline.without_layout}, positions as given"
    count = "1 image" if cfg.n == 1 else f"{cfg.n} images"
    print(f"{', '.join(label_set)}: {count}, {how}, seed {cfg.seed}")


def check_request(cfg: DictConfig) -> None:
    """Check the settings that need no weights.

    Raises:
        ValueError: A number is out of range.
        UserError: Settings contradict each other, or files would be overwritten.
    """
    from iclevr_diffusion.cli.output_dir import refuse_overwriting
    from iclevr_diffusion.models.layout import CLEAR
    from iclevr_diffusion.utils.checks import check_range
    from iclevr_diffusion.utils.errors import UserError

    refuse_several()
    check_range("n", cfg.n, 1, MAX_IMAGES)
    wanted = {GRID: True, STRIP: cfg.strip, ANIMATION: cfg.animation}
    refuse_overwriting(cfg.out, *(name for name, is_wanted in wanted.items() if is_wanted))
    if cfg.positions is not None and cfg.layout != CLEAR:
        raise UserError(f"layout={cfg.layout} chooses positions, which are given: leave it out")


if __name__ == "__main__":
    main()
