"""The app on a Hugging Face Space, whose ``app.py`` calls :func:`main`."""

from pathlib import Path

from iclevr_diffusion.utils.imports import import_diffusers


def main(weights: str | Path) -> None:
    """Serve the app with the weights in a folder, until the process ends.

    The Space's environment names the address (``GRADIO_SERVER_NAME``, ``GRADIO_SERVER_PORT``);
    elsewhere it is 127.0.0.1.

    Raises:
        UserError: There are no weights, or they generate NaN.
    """
    import_diffusers()
    from iclevr_diffusion.demo.findings import all_evaluators
    from iclevr_diffusion.demo.server import serve, wait
    from iclevr_diffusion.diffusion.io import load_model
    from iclevr_diffusion.evaluation.classifier import load_evaluator
    from iclevr_diffusion.utils.environment import choose_device

    device = choose_device("auto")
    model = load_model(weights).to(device)
    evaluators = all_evaluators(load_evaluator(), model.vocabulary)
    page = serve(model, [evaluator.to(device) for evaluator in evaluators])
    print(page.local_url, flush=True)
    wait()
