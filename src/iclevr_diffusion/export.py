"""Export weights: ``python -m iclevr_diffusion.export weights=outputs/quickstart out=exported``."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, refuse_several
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import Export
from iclevr_diffusion.utils.imports import import_diffusers


@command("export", Export)
def main(cfg: DictConfig) -> None:
    """Write weights for other tools, with a model card, and upload them if asked."""
    import_diffusers()
    # Here, so that --help need not wait for torch.
    from pathlib import Path

    from iclevr_diffusion.cli.ema_length import load_with_length
    from iclevr_diffusion.cli.export_wiring import (
        CARD,
        CLIENT,
        GRAPH,
        SAMPLES,
        check_export,
        dtype_of,
        export_graph,
        export_weights,
        find_evaluation,
    )
    from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
    from iclevr_diffusion.cli.space_export import SPACE_FILES, export_space
    from iclevr_diffusion.diffusion.hub import SETTINGS, TENSORS, check_login, push
    from iclevr_diffusion.diffusion.io import PARTS
    from iclevr_diffusion.diffusion.onnx_export import check_onnx
    from iclevr_diffusion.diffusion.weights_path import find_weights
    from iclevr_diffusion.evaluation.results import EVALUATION

    with user_settings():
        refuse_several()
        check_export(cfg)
        is_onnx, is_space = cfg.format == "onnx", cfg.format == "space"
        names = {"onnx": (GRAPH, CLIENT), "space": SPACE_FILES}
        refuse_overwriting(cfg.out, *names.get(cfg.format, (*PARTS, EVALUATION, CARD, SAMPLES)))
        weights = find_weights(Path(cfg.weights))
        # Weights that are averaged anew have not been evaluated.
        evaluation = (
            None if cfg.ema_length is not None else find_evaluation(cfg.evaluation, weights)
        )
        model = load_with_length(weights, cfg.ema_length)
        model.pipeline()  # to refuse stored settings that are out of range
        if is_onnx:
            check_onnx(model)
        if cfg.repo is not None:
            check_login(cfg.repo)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/export") as out:
        if is_onnx:
            files = export_graph(model, weights, cfg, out)
        elif is_space:
            files = export_space(model, out, dtype_of(cfg, weights), cfg.license)
        else:
            files = export_weights(model, weights, evaluation, cfg, out)
        for name in files:
            print(out / name)
        if cfg.repo is not None:
            replaced = () if is_onnx else (*SETTINGS, *TENSORS, EVALUATION)
            print(push(out, files, cfg.repo, cfg.private, replaced))


if __name__ == "__main__":
    main()
