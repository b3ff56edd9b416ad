"""``metrics.csv``, the log that every run has."""

import csv
import math
import time
from argparse import Namespace
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import atomic_path

FLUSH_SECONDS = 10.0  # from one writing of the file to the next
SHARE = 0.01  # of the time, at most, for writing it


class MetricsCSV(Logger):
    """``metrics.csv``: a row per logged step, a column per metric.

    The file is written atomically every ten seconds, less often where that takes more than a
    hundredth of the time, and before each checkpoint. A resumed run keeps the rows up to
    the step of its checkpoint; later ones, which it will log again, are dropped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, float]] = {}
        self._unsaved = 0
        self._next = time.monotonic() + FLUSH_SECONDS

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self._rows.setdefault(step or 0, {})
        row.update({key: float(value) for key, value in metrics.items()})
        self._unsaved += 1

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Do nothing: the run folder has the resolved config."""

    def restore(self, steps: int) -> None:
        """Restore the rows of the first ``steps`` optimizer steps from the file."""
        self._rows = {
            int(row["step"]): {key: value for key, value in row.items() if key != "step"}
            for row in read_metrics(self.path)
            if row["step"] < steps
        }

    @property
    def rows(self) -> list[dict[str, float]]:
        """All rows so far, by step."""
        return [{"step": float(step), **row} for step, row in sorted(self._rows.items())]

    def latest(self) -> dict[str, float]:
        """Return the last value of each metric."""
        return {key: value for row in self.rows for key, value in row.items() if key != "step"}

    def save(self) -> None:
        """Write the file now and then; Lightning calls this after every row."""
        if time.monotonic() >= self._next:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write all rows."""
        if not self._unsaved:
            return
        start = time.monotonic()
        columns = ["step", *sorted({key for row in self._rows.values() for key in row})]
        with (
            atomic_path(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({**row, "step": step} for step, row in sorted(self._rows.items()))
        self._unsaved = 0
        end = time.monotonic()
        self._next = end + max(FLUSH_SECONDS, (end - start) / SHARE)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        # After a failure, that failure is reported, even if writing fails, too.
        with suppress(OSError) if status == "failed" else nullcontext():
            self.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a ``metrics.csv``, without empty cells; none if there is no file.

    Raises:
        UserError: The file is damaged.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {key: float(value) for key, value in row.items() if value not in ("", None)}
                for row in csv.DictReader(file)
            ]
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {str(error)[:80]!r}") from error
    if not all(math.isfinite(row.get("step", math.nan)) for row in rows):
        raise UserError(f"{path} is damaged: a row has no step")
    return rows
