"""The app's web server: gradio, with nothing open but what the page needs."""

import logging
import os
import threading
from collections.abc import Sequence
from typing import Any

# Before gradio is imported: no usage statistics, and no check for newer versions.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from gradio.themes import Base
from starlette.middleware import Middleware

from iclevr_diffusion.demo.access import LOCAL, OnlyThePage, check_address, is_local
from iclevr_diffusion.demo.generation import stop
from iclevr_diffusion.demo.handlers import HERE, Handlers
from iclevr_diffusion.demo.page import build_page
from iclevr_diffusion.demo.visitor_limits import Limits
from iclevr_diffusion.diffusion.hub import is_on_hub
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import PRETRAINED
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.reporting import STYLE

SLIDERS = HERE / "sliders.js"
WITHOUT_EXTRAS: dict[str, Any] = {  # of gradio's launch()
    "prevent_thread_lock": True,
    "quiet": True,
    "inbrowser": False,
    "footer_links": [],
    "run_history": False,
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
    "max_file_size": 1,
}


def serve(
    model: Model | GAN,
    evaluators: Sequence[Evaluator],
    limits: Limits | None = None,
    weights: str | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
) -> gr.Blocks:
    """Start the server, and return; :func:`wait` waits.

    Args:
        model: The weights.
        evaluators: Those that look at each image.
        limits: Limits for visitors.
        weights: Name of the weights, which the page shows; a path only to visitors from this
            machine.
        host: The address to listen at; None: 127.0.0.1, or that of a Hugging Face Space.
        port: The port; None: the first free one from 7860.
        share: Also open a public link, through gradio's servers.

    Raises:
        UserError: The address cannot be used, or the network generates NaN.
    """
    limits = limits or Limits()
    if port is not None:
        check_address(host or LOCAL, port)
    is_private = is_local(host or LOCAL) and not share
    named = weights is not None and (is_private or is_on_hub(weights) or weights == PRETRAINED)
    page = build_page(Handlers(model, evaluators, limits, weights if named else None))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # of gradio's request to itself
    page.queue(max_size=limits.queue, api_open=False)
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        state_session_capacity=limits.sessions,
        theme=theme(),
        # gradio puts its own class before each selector of css=, which :root cannot have.
        head=f"<style>{STYLE.read_text('utf-8')}</style><script>{SLIDERS.read_text('utf-8')}</script>",
        css=(HERE / "app.css").read_text("utf-8"),
        app_kwargs={"middleware": [Middleware(OnlyThePage)], "docs_url": None, "redoc_url": None},
        **WITHOUT_EXTRAS,
    )
    return page


def wait() -> None:
    """Wait until the process is interrupted; then end sampling."""
    try:
        threading.Event().wait()
    finally:
        stop()


def theme() -> Base:
    """Return gradio's plain theme with the colors of the shared style, and no web fonts."""
    sheet = Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    colors = {
        "body_background_fill": "var(--page)",
        "body_text_color": "var(--text)",
        "body_text_color_subdued": "var(--quiet)",
        "background_fill_primary": "var(--page)",
        "background_fill_secondary": "var(--card)",
        "block_background_fill": "var(--card)",
        "block_label_text_color": "var(--quiet)",
        "block_title_text_color": "var(--text)",
        "block_info_text_color": "var(--quiet)",
        "border_color_primary": "var(--rule)",
        "block_border_color": "var(--rule)",
        "input_background_fill": "var(--page)",
        "input_border_color": "var(--rule)",
        "button_primary_background_fill": "var(--link)",
        "button_primary_background_fill_hover": "var(--link)",
        "button_primary_text_color": "var(--page)",
        "button_secondary_background_fill": "var(--card)",
        "button_secondary_background_fill_hover": "var(--rule)",
        "button_secondary_text_color": "var(--text)",
        "button_secondary_border_color": "var(--rule)",
        "slider_color": "var(--link)",
    }
    both = {f"{name}{suffix}": value for name, value in colors.items() for suffix in ("", "_dark")}
    known = vars(sheet)
    return sheet.set(**{name: value for name, value in both.items() if name in known})
