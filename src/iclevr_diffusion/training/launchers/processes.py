"""A group of processes that a launcher has started."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Processes that a launcher, not Lightning, has started; this one is among them.

    Attributes:
        what: the launcher and its variables, in words.
        environment: the name of Lightning's class for it.
        rank: of this process among all.
        local_rank: of this process among those of its node.
        processes: their number; None where the launcher does not say.
        per_node: their number on each node; None where the launcher does not say.
        advice: how to ask for another number, with ``{devices}`` and ``{nodes}``.
        started: whether that many have been started, as far as is known.
        refusal: why no training can begin in them; empty if one can.
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
