"""The requests that the app's page makes.

The only state of a visitor is :class:`~.visit.Visit`, which gradio keeps and passes in.
"""

import json
import random
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iclevr_diffusion.demo.findings import EXTRA, MISSING, SEEN, UNCLEAR, find
from iclevr_diffusion.demo.generation import generate, sample_scene, snap_scene
from iclevr_diffusion.demo.requests import MAX_SCALE, MAX_SEED, Scene, Settings, read_scene
from iclevr_diffusion.demo.visit import Film, Visit, step_sources
from iclevr_diffusion.demo.visitor_limits import Limits
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import PRETRAINED
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.templates import html_templates
from iclevr_diffusion.utils.text import in_shell

HERE = Path(__file__).parent
CLASSES = {SEEN: "good", UNCLEAR: "open", MISSING: "bad", EXTRA: "bad"}


class Shown(NamedTuple):
    """Parts of the page, as HTML; None leaves a part unchanged."""

    progress: str
    findings: str | None


class Handlers:
    """Answers a visitor's requests.

    Args:
        model: The weights.
        evaluators: They classify each image; empty if none knows these labels.
        limits: Limits for visitors.
        weights: The weights as a setting of ``sample``; None: not shown.
    """

    def __init__(
        self,
        model: Model | GAN,
        evaluators: Sequence[Evaluator],
        limits: Limits,
        weights: str | None = None,
    ) -> None:
        self.model = model
        self.evaluators = list(evaluators)
        self.limits = limits
        self.weights = weights
        self.vocabulary = model.vocabulary
        self.defaults: Pipeline = model.pipeline()
        self.takes_positions = self.defaults.position_prior is not None
        environment = html_templates(HERE)
        environment.globals["kinds"] = {"–": ""} | CLASSES
        self.parts: Any = environment.get_template("parts.html").module

    def generate(
        self, value: object, settings: Settings, visit: Visit
    ) -> Generator[Shown, None, None]:
        """Generate an image of the scene that the page sends, and show each step.

        Raises:
            UserError: The request is refused, or takes too long.
        """
        settings = settings.check(self.limits)
        pipeline = self.pipeline(settings)
        scene = snap_scene(pipeline, self.read(value))
        film = Film(pipeline.steps)
        steps = generate(pipeline, scene, settings.seed, self.limits.seconds)
        name, x_t = ", ".join(scene.label_set), ""
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                image = end.value
                break
            film.add(step)
            x_t, x0 = step_sources(step)
            number = step.number + 1
            text = name if number == pipeline.steps else f"{name}: estimate, step {number}"
            yield Shown(self.parts.progress(number, pipeline.steps, x_t, x0, text), None)
        # After the last step, x_t is the image; the estimate of x_0 lacks the final noise.
        visit.finish(film, scene.label_set, x_t, settings.seed)
        found = find(image, scene.label_set, self.evaluators)
        progress = self.parts.progress(pipeline.steps, pipeline.steps, x_t, x_t, name)
        yield Shown(progress, self.parts.findings(found, self.command(scene, settings)))

    def sample_positions(self, value: object) -> dict[str, Any]:
        """Return the scene with new positions, sampled as ``sample`` does.

        Raises:
            UserError: The scene is refused.
        """
        scene = self.read(value)
        return sample_scene(self.defaults, scene, random.randrange(MAX_SEED)).to_value()

    def keep(self, visit: Visit) -> str:
        """Put the visitor's last image into the gallery; return the gallery."""
        visit.keep(self.limits.kept)
        return str(self.parts.kept(visit.kept, self.limits.kept))

    def strip(self, visit: Visit) -> str:
        """Return a link to the denoising strip of the last image; empty if there is none."""
        if visit.film is None or visit.last is None:
            return ""
        return str(self.parts.download(visit.film.strip(), f"{visit.last.name}_strip.png"))

    def animation(self, visit: Visit) -> str:
        """Return a link to the denoising of the last image as a GIF; empty if there is none."""
        if visit.film is None or visit.last is None:
            return ""
        return str(self.parts.download(visit.film.animation(), f"{visit.last.name}_denoising.gif"))

    def read(self, value: object) -> Scene:
        """Read a scene, as :func:`~.requests.read_scene`."""
        return read_scene(value, self.vocabulary, self.limits, self.takes_positions)

    def pipeline(self, settings: Settings) -> Pipeline:
        """Build a pipeline.

        Raises:
            UserError: These weights do not take the settings.
        """
        if not isinstance(self.model, Model):
            return self.defaults
        try:
            return self.model.pipeline(
                settings.sampler, settings.steps, settings.guidance_scale, layout=CLEAR
            )
        except ValueError:  # its message names settings that the visitor does not see
            raise UserError("These weights do not support this combination of settings.") from None

    def first_settings(self) -> Settings:
        """Return the settings stored with the weights, within the limits."""
        steps = min(self.defaults.steps, self.most_steps())
        return Settings(
            self.defaults.sampler_name, steps, min(self.defaults.guidance_scale, MAX_SCALE)
        )

    def most_steps(self) -> int:
        """Return the most sampling steps that a visitor can choose."""
        steps = self.model.schedule.timesteps if isinstance(self.model, Model) else 1
        return min(steps, self.limits.steps)

    def first_scene(self) -> Scene:
        """Return a scene to start with."""
        names = self.vocabulary.names
        wished = [name for name in ("cyan cube", "red sphere", "green cylinder") if name in names]
        label_set = tuple(wished or names[:2])[: self.limits.objects]
        return sample_scene(self.defaults, Scene(label_set, None), seed=3)

    def command(self, scene: Scene, settings: Settings) -> str:
        """Return the command that generates the same image."""
        words = ["python -m iclevr_diffusion.sample"]
        if self.weights not in (None, PRETRAINED):
            words.append(f"weights={in_shell(self.weights)}")
        words.append(f"labels={in_shell(', '.join(scene.label_set))}")
        if scene.positions is not None:
            words.append(f"positions='{json.dumps(scene.positions, separators=(',', ':'))}'")
        given = {
            "sampler.name": (settings.sampler, self.defaults.sampler_name),
            "sampler.steps": (settings.steps, self.defaults.steps),
            "guidance.scale": (settings.guidance_scale, self.defaults.guidance_scale),
        }
        words += [f"{key}={value}" for key, (value, default) in given.items() if value != default]
        return " ".join([*words, f"n=1 seed={settings.seed}"])
