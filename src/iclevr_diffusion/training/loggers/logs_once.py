"""The base of tracking services' loggers: log each step once, survive failures."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

P = ParamSpec("P")
OnceLogger = TypeVar("OnceLogger", bound="LogsOnce")
Method = Callable[Concatenate[OnceLogger, P], None]


def reason_of(error: Exception) -> str:
    """Return an error in one line of at most 300 characters, or the name of its class."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def survives(
    what: str | None = None,
) -> Callable[["Method[OnceLogger, P]"], "Method[OnceLogger, P]"]:
    """Decorate a method of a :class:`LogsOnce`: its errors end the logging, not the training.

    It runs in the first process only.

    Args:
        what: What the method logs, if errors are to leave out only that; None for metrics.
    """

    def decorate(method: "Method[OnceLogger, P]") -> "Method[OnceLogger, P]":
        @functools.wraps(method)
        @rank_zero_only
        def guarded(self: OnceLogger, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if self.is_lost or what in self.left_out:
                return
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                if what is None:
                    self.lose(self.reason(error))
                else:
                    self.leave_out(what, self.reason(error))

        return guarded

    return decorate


class LogsOnce(Logger):
    """A logger that continues an earlier process's run, and whose errors do not stop training.

    Steps that were logged before are not logged again; those that were lost when a process was
    killed are taken from ``metrics.csv``. An error of the service is printed once.

    Attributes:
        last: The last step of each metric that was logged before.
        is_lost: Whether the service has failed; nothing is logged from then on.
        left_out: What has failed besides metrics, such as tables.
    """

    service: str
    reason = staticmethod(reason_of)  # returns an error of the service in one line

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last: dict[str, int] = {}
        self.is_lost = False
        self.left_out: set[str] = set()

    def fill(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows of ``metrics.csv`` that an earlier process lost when it was killed."""
        for row in rows:
            metrics = {key: value for key, value in row.items() if key != "step"}
            self.log_metrics(metrics, int(row["step"]))

    @survives()
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if row := self.unlogged(metrics, step):
            super().log_metrics(row, step)  # type: ignore[safe-super]

    @survives()
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)  # type: ignore[safe-super]

    def unlogged(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """Return the metrics that are new at this step; empty if only the epoch is left."""
        row = {
            key: value
            for key, value in metrics.items()
            if step is None or step > self.last.get(key, -1)
        }
        return row if row.keys() - {"epoch"} else {}

    def finish(self, exit_code: int) -> None:
        """End the run of the service with the exit code of the training."""
        raise NotImplementedError

    def leave_out(self, what: str, problem: str) -> None:
        """Stop logging something other than metrics, such as tables, and print why.

        A server that does not answer would delay each scoring.
        """
        self.left_out.add(what)
        print(f"{self.service}: {what} are left out from now on: {problem}")

    def upload_command(self) -> str | None:
        """Return the command that uploads later what was logged; None if there is none."""
        return None

    def lose(self, problem: str) -> None:
        """Print once that the service failed, and how to upload what it had written."""
        if self.is_lost:
            return
        self.is_lost = True
        command = self.upload_command()
        advice = f". To upload the rest later: {command}" if command else ""
        print(f"{self.service}: {problem}; metrics.csv has every step{advice}")


def name_of_run(folder: Path) -> str:
    """Return the name of a run for tracking services: the last two parts of its folder's path."""
    return f"{folder.parent.name}/{folder.name}"
