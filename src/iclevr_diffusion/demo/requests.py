"""Requests of the app's visitors, checked: nothing else that a visitor sends is used.

Messages never repeat what was sent, since the page would show it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.demo.visitor_limits import Limits
from iclevr_diffusion.diffusion.pipeline import GeneratorPipeline
from iclevr_diffusion.diffusion.prompts import parse_positions
from iclevr_diffusion.diffusion.samplers import SAMPLERS
from iclevr_diffusion.utils.errors import UserError

GENERATOR = GeneratorPipeline.sampler_name  # of a GAN, whose settings the page does not show
MAX_SCALE = 10.0
MAX_SEED = 2**31 - 1
Position = tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """Sampling settings."""

    sampler: str
    steps: int
    guidance_scale: float
    seed: int = 0

    def check(self, limits: Limits) -> "Settings":
        """Return the settings, with whole numbers as int.

        Raises:
            UserError: A setting is of another type or out of range.
        """
        if not isinstance(self.sampler, str) or self.sampler not in (*SAMPLERS, GENERATOR):
            raise UserError(f"The sampler must be one of {', '.join(SAMPLERS)}.")
        return Settings(
            self.sampler,
            int(_number(self.steps, 1, limits.steps, "The number of steps", whole=True)),
            _number(self.guidance_scale, 0, MAX_SCALE, "The guidance scale"),
            int(_number(self.seed, 0, MAX_SEED, "The seed", whole=True)),
        )


@dataclass(frozen=True)
class Scene:
    """Objects, in the order in which they were placed, and their positions.

    Attributes:
        label_set: The labels.
        positions: One (x, y) per label, in [-1, 1]; None: to be sampled.
    """

    label_set: LabelSet
    positions: tuple[Position, ...] | None

    def tensor(self, vocabulary: Vocabulary) -> Tensor | None:
        """Return the positions, (L, 2), 0 for labels that are not in the scene, or None."""
        if self.positions is None:
            return None
        return parse_positions(self.positions, self.label_set, vocabulary)

    def to_value(self) -> dict[str, Any]:
        """Return the scene as the page has it; :func:`read_scene` reads it."""
        places: Sequence[Position | tuple[None, None]]
        places = self.positions or [(None, None)] * len(self.label_set)
        objects = [
            {"label": name, "x": x, "y": y}
            for name, (x, y) in zip(self.label_set, places, strict=True)
        ]
        return {"objects": objects}


def read_scene(
    value: object, vocabulary: Vocabulary, limits: Limits, takes_positions: bool
) -> Scene:
    """Read a scene that the page sends: ``{"objects": [{"label": …, "x": …, "y": …}, …]}``.

    Raises:
        UserError: It is something else, has too many objects, or one that is unknown or outside.
    """
    objects = value.get("objects") if isinstance(value, dict) else None
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise UserError("The scene must be a list of objects.")
    if not 1 <= len(objects) <= limits.objects:
        raise UserError(f"Choose 1 to {limits.objects} objects.")
    names = [each.get("label") for each in objects]
    if not all(isinstance(name, str) and name in vocabulary.index for name in names):
        raise UserError("There is an object that these weights do not know.")
    if len({*names}) < len(names):
        raise UserError("An image has at most one object of each kind.")
    label_set: LabelSet = tuple(map(str, names))
    if not takes_positions or any(each.get("x") is None for each in objects):
        return Scene(label_set, None)
    return Scene(
        label_set,
        tuple(
            (
                _number(each.get("x"), -1, 1, "A position"),
                _number(each.get("y"), -1, 1, "A position"),
            )
            for each in objects
        ),
    )


def _number(value: object, least: float, most: float, what: str, whole: bool = False) -> float:
    """Return a number in a range.

    Raises:
        UserError: It is something else.
    """
    kind = "a whole number" if whole else "a number"
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not least <= value <= most or (whole and value != int(value)):  # type: ignore[operator, call-overload]
        raise UserError(f"{what} must be {kind} from {least:g} to {most:.10g}.")
    return float(value)  # type: ignore[arg-type]
