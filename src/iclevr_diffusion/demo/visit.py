"""The state of one visitor; gradio keeps one for each."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.evaluation.image_grid import Strip, write_animation

STRIP_FRAMES, FILM_FRAMES = 10, 24
STRIP_ZOOM, FILM_ZOOM = 2, 3


@dataclass
class Kept:
    """An image in a gallery.

    Attributes:
        source: As a data URI.
        name: For the file, without a suffix.
        caption: Text below it.
    """

    source: str
    name: str
    caption: str


@dataclass
class Visit:
    """The last finished image of a visitor, with its steps, and the gallery."""

    film: "Film | None" = None
    last: Kept | None = None
    kept: list[Kept] = field(default_factory=list)

    def finish(self, film: "Film", labels: Sequence[str], source: str, seed: int) -> None:
        """Remember a finished image in place of the last one."""
        name = "_".join(label.replace(" ", "-") for label in labels)
        safe = "".join(letter for letter in name if letter.isalnum() or letter in "-_")
        self.film = film
        self.last = Kept(source, f"{safe[:80]}_{seed}", f"{', '.join(labels)}; seed {seed}")

    def keep(self, most: int) -> None:
        """Add the last image to the gallery unless it is there; drop the oldest of too many."""
        if self.last is not None and self.last not in self.kept:
            self.kept = [*self.kept, self.last][-most:]


class Film:
    """The steps of one image."""

    def __init__(self, steps: int) -> None:
        self._strip = Strip(steps, STRIP_FRAMES, images=1)
        self._frames = Strip(steps, FILM_FRAMES, images=1)

    def add(self, step: Step) -> None:
        """Remember a step, if it is one of those to show."""
        self._strip(step)
        self._frames(step)

    def strip(self) -> str:
        """Return the denoising strip as a data URI of a PNG."""
        return data_uri(self._strip.image(zoom=STRIP_ZOOM))

    def animation(self) -> str:
        """Return the denoising as a data URI of a GIF."""
        buffer = io.BytesIO()
        write_animation(self._frames.animation(zoom=FILM_ZOOM), buffer, "gif")
        return _uri(buffer.getvalue(), "image/gif")


def step_sources(step: Step) -> tuple[str, str]:
    """Return x_t and the estimate of x_0 of one image as data URIs."""
    x_t, x0 = (image[0].permute(1, 2, 0).numpy() for image in (step.x_t, step.x0))
    return data_uri(Image.fromarray(x_t)), data_uri(Image.fromarray(x0))


def data_uri(image: Image.Image) -> str:
    """Return an image as a data URI of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return _uri(buffer.getvalue(), "image/png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
