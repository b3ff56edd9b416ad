"""Comet: an experiment per run folder, offline unless the user asks for the server."""

import json
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger
from lightning.pytorch.utilities import rank_zero_only

from iclevr_diffusion.training.loggers.logs_once import (
    LogsOnce,
    name_of_run,
    reason_of,
    survives,
)
from iclevr_diffusion.training.loggers.packages import check_installed
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.text import in_shell

FOLDER = "comet"  # in the run folder: the archives of offline experiments, and the key
KEY = "key"
# Comet would record the machine, the code and all output, and report its errors to its developers.
RECORD_NOTHING_ELSE = {
    "log_code": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "log_env_details": False,
    "log_env_host": False,
    "auto_output_logging": False,
    "auto_param_logging": False,
    "auto_log_co2": False,
    "parse_args": False,
    "display_summary_level": 0,
}


def comet_logger(
    folder: Path,
    project: str,
    workspace: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    online: bool = False,
) -> "CometRun":
    """Start or continue the Comet experiment of a run folder.

    Args:
        folder: Folder of the run; an offline experiment is an archive in ``folder/comet`` for each
            process that has logged to it.
        project: Name of the project.
        workspace: Its workspace; None for the user's default.
        name: Name of the experiment; None for the last two parts of the path of its folder.
        tags: Tags of the experiment.
        online: Whether to send it to Comet's server, which needs a key.

    Raises:
        UserError: comet-ml is not installed, a key is missing, or the experiment cannot start.
    """
    check_installed("comet")
    os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")
    os.environ.setdefault("COMET_LOGGING_CONSOLE", "error")
    if online and not import_module("comet_ml").get_config("comet.api_key"):
        raise UserError("logger.comet.online=true needs a key: set COMET_API_KEY")
    try:
        with _started_online(online):
            return CometRun(
                folder / FOLDER,
                online,
                project=project,
                workspace=workspace,
                name=name or name_of_run(folder),
                tags=list(tags),
            )
    except Exception as error:
        raise UserError(f"Comet: {reason_of(error)}; logger=csv trains without it") from error


@contextmanager
def _started_online(online: bool) -> Iterator[None]:
    """Within the block, Comet starts experiments on its server, or offline.

    The argument ``online=False`` of Lightning's logger disables the experiment altogether
    (Lightning issue 21617), so Comet's own setting is used instead.
    """
    name = "COMET_START_ONLINE"
    before = os.environ.get(name)
    os.environ[name] = str(online).lower()
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class CometRun(LogsOnce, CometLogger):
    """The Comet experiment of a run folder."""

    service = "Comet"

    def __init__(self, folder: Path, online: bool, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / KEY
        key = file.read_text("utf-8").strip() if file.is_file() else uuid.uuid4().hex
        archives = sorted(folder.glob("*.zip"))  # a killed process has left none
        is_known = file.is_file() if online else bool(archives)
        super().__init__(
            experiment_key=key,
            mode="get" if is_known else "create",
            offline_directory=str(folder),
            **RECORD_NOTHING_ELSE,
            **settings,
        )
        self.folder, self.online = folder, online
        self.last = last_steps(archives)
        self._note_key(file, key)

    @rank_zero_only
    def _note_key(self, file: Path, key: str) -> None:
        write_text(file, key + "\n")

    def fill(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log what an offline process lost when it was killed; the server has its steps."""
        if not self.online:
            super().fill(rows)

    @survives()
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log images under a name."""
        if self.unlogged({key: images}, step):
            for image in images:
                self.experiment.log_image(image, name=key, step=step)

    @survives()
    def finalize(self, status: str) -> None:
        super().finalize(status)

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the experiment, and print how to upload it if it is offline."""
        try:
            self.experiment.end()
        except Exception as error:
            self.lose(reason_of(error))
        if not self.online and not self.is_lost:
            print(f"Comet is offline. To upload it later: {self.upload_command()}")

    def upload_command(self) -> str | None:
        """Return the command that uploads the archives of all processes."""
        return None if self.online else f"comet upload {in_shell(self.folder)}/*.zip"


def last_steps(archives: Sequence[Path]) -> dict[str, int]:
    """Return the last step of each metric and image in the archives of an offline experiment."""
    last: dict[str, int] = {}
    for archive in archives:
        try:
            with zipfile.ZipFile(archive) as file, file.open("messages.json") as lines:
                for line in lines:
                    key, step = _logged(json.loads(line)["payload"])
                    if key is not None and step is not None:
                        last[key] = max(int(step), last.get(key, -1))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError):
            continue  # the process was killed while it wrote this
    return last


def _logged(payload: Mapping[str, Any]) -> tuple[str | None, int | None]:
    if "metric" in payload:
        return payload["metric"]["metricName"], payload["metric"]["step"]
    about = payload.get("additional_params") or {}
    return about.get("figName"), about.get("step")
