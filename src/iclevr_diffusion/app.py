"""Generate images in the browser: ``python -m iclevr_diffusion.app`` (the extra ``app``)."""

from omegaconf import DictConfig

from iclevr_diffusion.cli.command import command, refuse_several
from iclevr_diffusion.cli.ending import user_settings
from iclevr_diffusion.cli.schema import App
from iclevr_diffusion.utils.imports import import_diffusers

NO_GRADIO = "app needs the package gradio: pip install '.[app]'"


@command("app", App)
def main(cfg: DictConfig) -> None:
    """Serve a page on which objects are moved, and images generated."""
    import_diffusers()
    # Here, so that --help need not wait for torch.
    from importlib.util import find_spec
    from pathlib import Path

    from iclevr_diffusion.cli.instantiate import instantiate
    from iclevr_diffusion.demo.access import check_address, is_local
    from iclevr_diffusion.demo.findings import all_evaluators
    from iclevr_diffusion.diffusion.io import load_model
    from iclevr_diffusion.diffusion.weights_path import find_weights, weights_name
    from iclevr_diffusion.utils.environment import choose_device
    from iclevr_diffusion.utils.errors import UserError

    with user_settings():
        refuse_several()
        limits = instantiate(cfg.limits, "limits")
        check_address(cfg.host, cfg.port)
        weights = find_weights(Path(cfg.weights))
        model = load_model(weights)
        model.pipeline()  # to refuse stored settings that are out of range
        evaluators = all_evaluators(instantiate(cfg.evaluator, "evaluator"), model.vocabulary)
        device = choose_device(cfg.device)
        if find_spec("gradio") is None:
            raise UserError(NO_GRADIO)
    from iclevr_diffusion.demo.server import serve, wait

    page = serve(
        model.to(device),
        [evaluator.to(device) for evaluator in evaluators],
        limits,
        weights_name(weights),
        cfg.host,
        cfg.port,
        cfg.share,
    )
    everyone = "" if is_local(cfg.host) else "  (open to all who can reach this machine)"
    print(f"{page.local_url.rstrip('/')}{everyone}", flush=True)
    if page.share_url is not None:
        print(f"{page.share_url}  (open to all who know it)", flush=True)
    wait()


if __name__ == "__main__":
    main()
