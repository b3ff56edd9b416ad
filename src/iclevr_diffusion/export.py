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

    from iclevr_diffusion.cli import export_wiring as wiring
    from iclevr_diffusion.cli.ema_length import load_with_length
    from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
    from iclevr_diffusion.diffusion.hub import check_login, push
    from iclevr_diffusion.diffusion.onnx_export import check_onnx
    from iclevr_diffusion.diffusion.weights_path import find_weights

    with user_settings():
        refuse_several()
        wiring.check_export(cfg)
        refuse_overwriting(cfg.out, *wiring.OUTPUTS[cfg.format])
        weights = find_weights(Path(cfg.weights))
        evaluation = None
        if cfg.ema_length is None:  # weights that are averaged anew have not been evaluated
            evaluation = wiring.find_evaluation(cfg.evaluation, weights)
        model = load_with_length(weights, cfg.ema_length)
        model.pipeline()  # to refuse stored settings that are out of range
        if cfg.format == "onnx":
            check_onnx(model)
        if cfg.repo is not None:
            check_login(cfg.repo)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/export") as out:
        files = wiring.export(model, weights, evaluation, cfg, out)
        for name in files:
            print(out / name)
        if cfg.repo is not None:
            print(push(out, files, cfg.repo, cfg.private, wiring.REPLACED[cfg.format]))


if __name__ == "__main__":
    main()
