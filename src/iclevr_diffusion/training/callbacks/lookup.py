"""Finding a callback among those of a trainer."""

from collections.abc import Iterator
from typing import TypeVar

import lightning as L

Kind = TypeVar("Kind", bound=L.Callback)


def callbacks_of(trainer: L.Trainer, kind: type[Kind]) -> Iterator[Kind]:
    """The trainer's callbacks of one kind, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, kind):
            yield callback
