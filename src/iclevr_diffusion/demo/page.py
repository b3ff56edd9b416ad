"""The app's page."""

import html
import random
from collections.abc import Callable, Generator
from typing import Any

import gradio as gr

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS
from iclevr_diffusion.data.synthetic.render import ALBEDO
from iclevr_diffusion.demo.generation import floor_bounds
from iclevr_diffusion.demo.handlers import HERE, Handlers
from iclevr_diffusion.demo.requests import MAX_SCALE, MAX_SEED, Scene, Settings
from iclevr_diffusion.demo.visit import Visit
from iclevr_diffusion.diffusion.samplers import SAMPLERS
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.utils.errors import UserError

TITLE = "i-CLEVR diffusion"
INTRODUCTION = """\
<header class="intro"><h1>{title}</h1>
<p><strong>Drag an object by its ring</strong>: a diffusion model makes a new image from noise, step
by step.</p>{weights}</header>"""
FORGET_AFTER = 3600  # seconds after the visitor's last new image
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
SHOW_KEPT = "() => document.querySelector('#kept').scrollIntoView({block: 'nearest'})"
CLICK_LINK = "() => document.querySelector('#download a')?.click()"


def build_page(handlers: Handlers) -> gr.Blocks:
    """Build the page, with an image on it that is generated now.

    Raises:
        UserError: The network generates NaN.
    """
    scene, visit = handlers.first_scene(), Visit()
    *_, shown = handlers.generate(scene.to_value(), handlers.first_settings(), visit)
    assert visit.last is not None
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(_introduction(handlers), apply_default_css=False, elem_id="intro")
        state = gr.State(visit, time_to_live=FORGET_AFTER)
        with gr.Row():
            with gr.Column(min_width=320):
                floor = _floor(handlers, scene, visit.last.source)
            with gr.Column(min_width=320):
                progress = gr.HTML(
                    shown.progress,
                    js_on_load=_file("frame.js"),
                    apply_default_css=False,
                    elem_id="progress",
                )
                with gr.Row():
                    noise = _button("New noise", variant="primary")
                    places = gr.Button(
                        "New positions", size="sm", min_width=80, visible=handlers.takes_positions
                    )
                with gr.Row():
                    keep = _button("Keep image")
                    strip = _button("Save strip")
                    film = _button("Save GIF")
                findings = gr.HTML(shown.findings, apply_default_css=False, elem_id="findings")
                settings = _settings(handlers)
        kept = gr.HTML("", apply_default_css=False, elem_id="kept")
        link = gr.HTML("", apply_default_css=False, elem_id="download", visible="hidden")

        *choices, seed = settings
        sampling: dict[str, Any] = {
            "fn": _generating(handlers),
            "inputs": [floor, *settings, state],
            "outputs": [progress, findings, state],
            "trigger_mode": "always_last",
            "concurrency_limit": 1,
            "concurrency_id": "sampling",
            **QUIET,
        }
        changes = [each.release if isinstance(each, gr.Slider) else each.input for each in choices]
        gr.on([floor.input, seed.submit, *changes], **sampling)
        gr.on([noise.click], _new_seed, None, seed, **QUIET).then(**sampling)
        gr.on([places.click], _sampling_positions(handlers), floor, floor, **QUIET).success(
            **sampling
        )
        gr.on([keep.click], handlers.keep, state, kept, **QUIET).then(None, js=SHOW_KEPT)
        for button, make in ((strip, handlers.strip), (film, handlers.animation)):
            gr.on([button.click], make, state, link, **QUIET).then(None, js=CLICK_LINK)
    return page


def _introduction(handlers: Handlers) -> str:
    """Return the title, what to do, and which weights these are."""
    name = handlers.weights
    weights = "" if name is None else f"<small>Weights: {html.escape(name)}</small>"
    return INTRODUCTION.format(title=TITLE, weights=weights)


def _floor(handlers: Handlers, scene: Scene, source: str) -> gr.HTML:
    """Return the floor on which objects are moved, over the image of the scene."""
    prior = handlers.defaults.position_prior
    return gr.HTML(
        scene.to_value(),
        html_template=_file("floor.html"),
        js_on_load=_file("floor.js"),
        apply_default_css=False,
        elem_id="floor",
        labels=list(handlers.vocabulary.names),
        icons=_icons(handlers),
        bounds=floor_bounds(handlers.defaults),
        middle=None if prior is None else prior.first.tolist(),
        most=handlers.limits.objects,
        first={"source": source, "text": ", ".join(scene.label_set)},
    )


def _settings(handlers: Handlers) -> list[Any]:
    """Return the components of the sampling settings: sampler, steps, guidance, seed."""
    first = handlers.first_settings()
    shown = isinstance(handlers.model, Model)
    with gr.Accordion("Settings: sampler, steps, guidance, seed", open=False):
        result = [
            gr.Dropdown(list(SAMPLERS), value=first.sampler, label="Sampler", visible=shown),
            gr.Slider(1, handlers.most_steps(), first.steps, step=1, label="Steps", visible=shown),
            gr.Slider(
                0,
                MAX_SCALE,
                first.guidance_scale,
                step=0.1,
                label="Guidance scale",
                info="1: no guidance",
                visible=shown,
            ),
            gr.Number(
                first.seed,
                label="Seed",
                info="of the noise; Enter generates",
                precision=0,
                minimum=0,
                maximum=MAX_SEED,
            ),
        ]
    for component in result:  # Settings.check answers what is wrong in a line, gradio with its code
        component.preprocess = _as_sent
    return result


def _as_sent(payload: Any) -> Any:
    return payload


def _button(text: str, **settings: Any) -> gr.Button:
    return gr.Button(text, size="sm", min_width=80, **settings)


def _generating(
    handlers: Handlers,
) -> Callable[..., Generator[tuple[Any, Any, Any], None, None]]:
    """Return the generator of the page's updates while an image is made."""

    def run(
        scene: object, sampler: Any, steps: Any, scale: Any, seed: Any, visit: Visit
    ) -> Generator[tuple[Any, Any, Any], None, None]:
        try:
            for shown in handlers.generate(scene, Settings(sampler, steps, scale, seed), visit):
                findings = gr.skip() if shown.findings is None else shown.findings
                yield shown.progress, findings, gr.skip() if shown.findings is None else visit
        except UserError as error:
            raise refusal(error) from None

    return run


def _sampling_positions(handlers: Handlers) -> Callable[[object], dict[str, Any]]:
    """Return the handler that samples positions."""

    def run(scene: object) -> dict[str, Any]:
        try:
            return handlers.sample_positions(scene)
        except UserError as error:
            raise refusal(error) from None

    return run


def refusal(error: UserError) -> gr.Error:
    """Return what gradio shows a visitor whose request is refused."""
    return gr.Error(str(error), title="Not generated", duration=6, print_exception=False)


def _new_seed() -> int:
    return random.randrange(1_000_000)


def _icons(handlers: Handlers) -> dict[str, dict[str, str]]:
    """Return the color and the shape that stand for each label; none for labels of other data."""
    if handlers.vocabulary != ICLEVR_LABELS:
        return {}
    colors = {
        color: "rgb({}, {}, {})".format(*rgb) for color, rgb in zip(COLORS, ALBEDO, strict=True)
    }
    return {
        label: {"color": colors[label.split()[0]], "shape": label.split()[1]}
        for label in ICLEVR_LABELS.names
    }


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
