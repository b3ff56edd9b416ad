"""A group of processes that a launcher has started, and its variables."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Processes started by a launcher, not by Lightning; this one is among them.

    Attributes:
        what: The launcher and its variables, for messages.
        environment: Name of the class in Lightning for it.
        rank: Rank of this process.
        local_rank: Rank of this process on its node.
        processes: Number of all processes; None if unknown.
        per_node: Number of processes per node; None if unknown.
        advice: How to request another number, with ``{devices}`` and ``{nodes}``.
        started: Whether that many processes were started, as far as is known.
        refusal: Why no training can start in these processes; empty if it can.
    """

    what: str
    environment: str
    rank: int = 0
    local_rank: int = 0
    processes: int | None = None
    per_node: int | None = None
    advice: str = ""
    started: bool = True
    refusal: str = ""

    @property
    def are_several(self) -> bool:
        return self.started and self.processes is not None and self.processes > 1


def number(name: str, default: int | None = None) -> int:
    """Return a variable, or the default, if there is one, where it is not set or empty.

    Raises:
        KeyError: It is not set, and there is no default.
        ValueError: It is not a whole number.
    """
    value = os.environ.get(name)
    if value is None or (value == "" and default is not None):
        if default is None:
            raise KeyError(name)
        return default
    if not value.isdecimal():
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return int(value)
