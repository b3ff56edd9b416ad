"""Evaluate weights: ``python -m iclevr_diffusion.evaluate weights=outputs/quickstart``.

Without ``weights``, those that come with the package; with ``images``, images made elsewhere.
"""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import Evaluate


@command("evaluate", Evaluate)
def main(cfg: DictConfig) -> None:
    """Measure how well weights, or given images, show the requested objects."""
    if cfg.images is not None:
        score_given_images(cfg)
    else:
        evaluate_weights(cfg)


def evaluate_weights(cfg: DictConfig) -> None:
    """Generate images with weights, and score them."""
    # Here, so that --help need not wait for torch.
    from pathlib import Path

    from iclevr_diffusion.cli import evaluation_wiring as wiring
    from iclevr_diffusion.cli.ema_length import load_with_length
    from iclevr_diffusion.cli.output_dir import output_folder
    from iclevr_diffusion.cli.sampling import build_pipelines, several
    from iclevr_diffusion.cli.wandb_reopen import find_wandb_run
    from iclevr_diffusion.diffusion.weights_path import find_weights
    from iclevr_diffusion.evaluation.fidelity import held_out_frames
    from iclevr_diffusion.evaluation.run_evaluation import wants_fidelity

    with user_settings():
        wiring.check_request(cfg)
        weights = find_weights(Path(cfg.weights))  # for a folder of runs, the newest one
        wandb_folder = find_wandb_run(cfg.wandb_run, weights)
        lengths = several(cfg.ema_length)
        models = [(length, load_with_length(weights, length)) for length in lengths]
        pipelines = build_pipelines(cfg, models)
        wiring.check_course(cfg, pipelines)
        model = models[0][1]
        inputs = wiring.load_inputs(cfg, model)
        compares = wants_fidelity(cfg.fidelity, inputs.source)
        facts = wiring.course_facts(model, weights, pipelines[0]) if cfg.course else None
    for _, averaged in models:
        averaged.to(inputs.device)  # the pipelines' networks, too
    with output_folder(cfg.out, f"{cfg.paths.outputs}/evaluate") as out:
        source = inputs.source
        held_out = held_out_frames(source) if compares and source is not None else None
        protocol = wiring.make_protocol(
            cfg, inputs, cfg.seeds, held_out=held_out, course_facts=facts
        )
        described = wiring.describe_weights(cfg, weights, model)
        evaluation = wiring.describe(protocol, inputs, **described)
        wiring.evaluate_and_log(pipelines, protocol, evaluation, out, wandb_folder)


def score_given_images(cfg: DictConfig) -> None:
    """Score the images of a folder, by the same metrics as generated ones."""
    from pathlib import Path

    from iclevr_diffusion.cli import evaluation_wiring as wiring
    from iclevr_diffusion.cli.output_dir import output_folder
    from iclevr_diffusion.evaluation.image_folder import read_images
    from iclevr_diffusion.evaluation.run_evaluation import evaluate_images

    with user_settings():
        wiring.refuse_sampling_settings()
        wiring.check_request(cfg)
        inputs = wiring.load_inputs(cfg)
        images = read_images(Path(cfg.images).expanduser(), inputs.lists)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/evaluate") as out:
        protocol = wiring.make_protocol(cfg, inputs, seeds=1)
        evaluation = wiring.describe(protocol, inputs, weights="", images=cfg.images)
        evaluate_images(images, protocol, evaluation, out)


if __name__ == "__main__":
    main()
