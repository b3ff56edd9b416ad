"""Limits for visitors of the app."""

from dataclasses import dataclass, fields

from iclevr_diffusion.utils.checks import check_range

MOST = 10_000


@dataclass(frozen=True)
class Limits:
    """Limits on what a visitor may ask for.

    Args:
        objects: Objects in an image.
        steps: Sampling steps.
        seconds: Time for one image, after which sampling ends.
        kept: Images in a visitor's gallery; the oldest makes room for a new one.
        queue: Visitors' requests that wait; further ones are refused. One image is sampled at once.
        sessions: Visitors whose gallery is remembered.

    Raises:
        ValueError: A limit is not between 1 and 10,000.
    """

    objects: int = 5
    steps: int = 100
    seconds: float = 60.0
    kept: int = 24
    queue: int = 32
    sessions: int = 100

    def __post_init__(self) -> None:
        for each in fields(self):
            check_range(each.name, getattr(self, each.name), 1, MOST)
