"""Where metrics go: always a CSV file in the run folder; W&B and TensorBoard where asked for."""

import csv
import itertools
import math
import netrc
import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.files import written_whole

FLUSH_EVERY_ROWS = 100


class MetricsCSV(Logger):
    """``metrics.csv``: a row for each logged step, a column for each metric.

    The file is always complete: it is rewritten beside itself and renamed, before each checkpoint
    too. A resumed run goes on after the rows up to the step of its checkpoint; later ones, which it
    will log again, are dropped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, float]] = {}
        self._unsaved = 0

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
        """Nothing: the run folder holds the resolved config."""

    def restore(self, steps: int) -> None:
        """Go on after the rows of an earlier process, of its first ``steps`` optimizer steps."""
        self._rows = {
            int(row["step"]): {key: value for key, value in row.items() if key != "step"}
            for row in read_metrics(self.path)
            if row["step"] < steps
        }

    @property
    def rows(self) -> list[dict[str, float]]:
        """Every row so far, by step."""
        return [{"step": float(step), **row} for step, row in sorted(self._rows.items())]

    def latest(self) -> dict[str, float]:
        """The last value of each metric."""
        return {key: value for row in self.rows for key, value in row.items() if key != "step"}

    def save(self) -> None:
        """Now and then; Lightning asks for it after every row."""
        if self._unsaved >= FLUSH_EVERY_ROWS:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write all rows."""
        if not self._unsaved:
            return
        columns = ["step", *sorted({key for row in self._rows.values() for key in row})]
        with (
            written_whole(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({**row, "step": step} for step, row in sorted(self._rows.items()))
        self._unsaved = 0

    @rank_zero_only
    def finalize(self, status: str) -> None:
        # After a failure there is nothing to be told but that, even if this fails too.
        with suppress(OSError) if status == "failed" else nullcontext():
            self.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``, empty cells left out; no file gives no rows.

    Raises:
        UserError: the file is damaged.
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


def wandb_logger(
    folder: Path, project: str, group: str | None = None, tags: Sequence[str] = ()
) -> WandbLogger:
    """W&B into ``folder``; offline, with a hint, where there is no key and WANDB_MODE is not set.

    The run's id is a function of the folder, so that a resumed run goes on in the same W&B run. So
    is the group where none is given: the folder around it is the sweep's, or the experiment's.

    Raises:
        UserError: wandb is not installed.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    if mode == "offline":
        hint = f"W&B is offline; to upload later: wandb sync {folder}/wandb/offline-run-*"
        rank_zero_only(print)(hint)
    try:
        logger = WandbLogger(
            name=f"{folder.parent.name}/{folder.name}",
            version=f"{folder.parent.name}-{folder.name}"[-64:],
            save_dir=folder,
            project=project,
            group=group or folder.parent.name,
            tags=list(tags),
            mode=mode,
            resume="allow",
            log_model=False,  # checkpoints would fill the disk and the account
        )
    except ModuleNotFoundError:
        raise UserError("logger=wandb needs wandb: pip install wandb") from None
    _define_wandb_metrics(logger)
    return logger


@rank_zero_only
def _define_wandb_metrics(logger: WandbLogger) -> None:
    step = "trainer/global_step"
    logger.experiment.define_metric(step)
    logger.experiment.define_metric("*", step_metric=step)
    for name, best in (("train/loss", "min"), ("val/loss", "min"), ("val/x0_error", "min")):
        logger.experiment.define_metric(name, step_metric=step, summary=best)
    logger.experiment.define_metric("score/*", step_metric=step, summary="max")
    for condition_list, worse in itertools.product(
        ("test", "new_test", "validation"), ("missing", "extra")
    ):
        name = f"score/{condition_list}/{worse}"
        logger.experiment.define_metric(name, step_metric=step, summary="min")


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname
    return any("wandb" in host or host == server for host in hosts)


def close_loggers(loggers: Sequence[Logger], exit_code: int) -> None:
    """End the W&B run with its exit code, so that the next job of a sweep begins its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            rank_zero_only(logger.experiment.finish)(exit_code=exit_code)


def tensorboard_logger(folder: Path) -> TensorBoardLogger:
    """TensorBoard's event files in ``folder/tensorboard``.

    Raises:
        UserError: tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(folder, name=None, version="tensorboard")
    except ModuleNotFoundError:
        raise UserError(
            "logger=tensorboard needs it: pip install 'iclevr-diffusion[tensorboard]'"
        ) from None


def log_picture(loggers: Sequence[Logger], key: str, picture: Image.Image, step: int) -> None:
    """Show a picture on the dashboards among ``loggers``."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")
