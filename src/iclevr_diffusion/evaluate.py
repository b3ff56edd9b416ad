"""Evaluate weights: ``python -m iclevr_diffusion.evaluate weights=outputs/quickstart``.

Without ``weights``, those that come with the package; with ``images``, images made elsewhere.
"""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, refuse_several
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import Evaluate


@command("evaluate", Evaluate)
def main(cfg: DictConfig) -> None:
    """Measure how well weights, or given images, show what was asked for."""
    if cfg.images is not None:
        score_given_images(cfg)
    else:
        evaluate_weights(cfg)


def evaluate_weights(cfg: DictConfig) -> None:
    """Generate images with weights, and score them."""
    # Here, so that --help need not wait for torch.
    from pathlib import Path

    from iclevr_diffusion.cli.ema_length import load_with_length
    from iclevr_diffusion.cli.evaluation_wiring import (
        build_pipelines,
        build_source,
        check_counts,
        check_course,
        course_facts,
        describe,
        evaluate_and_log,
        several,
    )
    from iclevr_diffusion.cli.evaluators import check_vocabulary, second_evaluator
    from iclevr_diffusion.cli.instantiate import instantiate
    from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
    from iclevr_diffusion.cli.wandb_run import find_wandb_run
    from iclevr_diffusion.diffusion.weights_path import find_weights
    from iclevr_diffusion.evaluation.fidelity import held_out_frames
    from iclevr_diffusion.evaluation.lists import find_lists
    from iclevr_diffusion.evaluation.run_evaluation import (
        Protocol,
        reference_features,
        wants_fidelity,
    )
    from iclevr_diffusion.utils.environment import choose_device

    with user_settings():
        refuse_several()
        check_counts(cfg)
        refuse_overwriting(cfg.out)
        weights = find_weights(Path(cfg.weights))  # of a folder of runs the newest: that is named
        wandb_folder = find_wandb_run(cfg.wandb_run, weights)
        models = [(length, load_with_length(weights, length)) for length in several(cfg.ema_length)]
        pipelines = build_pipelines(cfg, models)
        model = models[0][1]
        check_course(cfg, pipelines)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        check_vocabulary(evaluator, model.vocabulary, "these weights")
        second = second_evaluator(model.vocabulary)
        source = build_source(cfg, model)
        if source is not None:
            source.check()
        compares = wants_fidelity(cfg.fidelity, source)
        facts = course_facts(model, weights, pipelines[0]) if cfg.course else None
        device = choose_device(cfg.device)
    for _, averaged in models:
        averaged.to(device)  # the pipelines' networks, too
    evaluator = evaluator.to(device)
    second = None if second is None else second.to(device)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/evaluate") as out:
        lists, origins = find_lists(
            several(cfg.lists), source, model.data, model.vocabulary, model.split
        )
        protocol = Protocol(
            lists,
            evaluator,
            second,
            cfg.seeds,
            cfg.batch_size,
            reference_features(cfg.reference_frames, source, evaluator),
            held_out_frames(source) if compares and source is not None else None,
            facts,
        )
        anew = cfg.ema_length is not None
        evaluation = describe(protocol, origins, source, weights, model, anew)
        evaluate_and_log(pipelines, protocol, evaluation, out, wandb_folder)


def score_given_images(cfg: DictConfig) -> None:
    """Score the images of a folder, with the same measures as generated ones."""
    from pathlib import Path

    from iclevr_diffusion.cli.evaluation_wiring import (
        build_source,
        check_counts,
        describe,
        refuse_sampling_settings,
        several,
    )
    from iclevr_diffusion.cli.evaluators import second_evaluator
    from iclevr_diffusion.cli.instantiate import instantiate
    from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
    from iclevr_diffusion.evaluation.image_folder import read_images
    from iclevr_diffusion.evaluation.lists import find_lists
    from iclevr_diffusion.evaluation.run_evaluation import (
        Protocol,
        evaluate_images,
        reference_features,
    )
    from iclevr_diffusion.utils.environment import choose_device

    with user_settings():
        refuse_several()
        refuse_sampling_settings()
        check_counts(cfg)
        refuse_overwriting(cfg.out)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        second = second_evaluator(evaluator.vocabulary)
        source = build_source(cfg, None)
        if source is not None:
            source.check()
        lists, origins = find_lists(several(cfg.lists), source, {}, evaluator.vocabulary)
        images = read_images(Path(cfg.images).expanduser(), lists)
        device = choose_device(cfg.device)
    evaluator = evaluator.to(device)
    second = None if second is None else second.to(device)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/evaluate") as out:
        reference = reference_features(cfg.reference_frames, source, evaluator)
        protocol = Protocol(lists, evaluator, second, 1, cfg.batch_size, reference)
        evaluation = describe(protocol, origins, source, images=cfg.images)
        evaluate_images(images, protocol, evaluation, out)


if __name__ == "__main__":
    main()
