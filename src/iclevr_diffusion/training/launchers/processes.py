"""A group of processes that a launcher has started."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Processes started by a launcher, not by Lightning; this one is among them.

    Attributes:
        what: the launcher and its variables, for messages.
        environment: name of the class in Lightning for it.
        rank: rank of this process.
        local_rank: rank of this process on its node.
        processes: number of all processes; None if unknown.
        per_node: number of processes per node; None if unknown.
        advice: how to request another number, with ``{devices}`` and ``{nodes}``.
        started: whether that many processes were started, as far as is known.
        refusal: why no training can start in these processes; empty if it can.
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
