"""One visitor's images. gradio gives each visitor one of their own."""

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
    """What the app remembers of one visitor.

    Attributes:
        strip: Ten steps of the last image.
        film: More steps of it.
        last: The last image.
        kept: The gallery.
    """

    strip: Strip | None = None
    film: Strip | None = None
    last: Kept | None = None
    kept: list[Kept] = field(default_factory=list)

    def start(self, steps: int) -> None:
        """Forget the last image, and get ready for one of so many steps."""
        self.strip = Strip(steps, STRIP_FRAMES, images=1)
        self.film = Strip(steps, FILM_FRAMES, images=1)
        self.last = None

    def add(self, step: Step) -> None:
        """Remember a step, if it is one of those to show."""
        assert self.strip is not None
        assert self.film is not None
        self.strip(step)
        self.film(step)

    def finish(self, labels: Sequence[str], source: str, seed: int) -> None:
        """Remember the finished image."""
        name = "_".join(label.replace(" ", "-") for label in labels)
        safe = "".join(letter for letter in name if letter.isalnum() or letter in "-_")
        self.last = Kept(source, f"{safe[:80]}_{seed}", f"{', '.join(labels)}; seed {seed}")

    def keep(self, most: int) -> None:
        """Put the last image into the gallery, once; the oldest makes room."""
        if self.last is not None and self.last not in self.kept:
            self.kept = [*self.kept, self.last][-most:]

    def strip_file(self) -> str | None:
        """Return the denoising strip as a data URI of a PNG; None if there is no image."""
        if self.strip is None or self.last is None:
            return None
        return data_uri(self.strip.image(zoom=STRIP_ZOOM))

    def film_file(self) -> str | None:
        """Return the denoising as a data URI of a GIF; None if there is no image."""
        if self.film is None or self.last is None:
            return None
        buffer = io.BytesIO()
        write_animation(self.film.animation(zoom=FILM_ZOOM), buffer, "gif")
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
