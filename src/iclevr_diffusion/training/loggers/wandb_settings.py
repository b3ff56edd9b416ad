"""Checks of the W&B settings, and the user's own settings and login."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iclevr_diffusion.training.loggers.logs_once import reason_of
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import one_line

CHOICES: dict[str, tuple[str | bool | None, ...]] = {
    "mode": (None, "online", "offline", "disabled"),
    "log_model": (False, "best", "all"),
    "fallback": ("offline", "error"),
}
DATA_DIR = "WANDB_DATA_DIR"
NAME_LENGTH = 128  # characters of a project, group, job type, entity or display name


def check_wandb(settings: Mapping[str, Any]) -> None:
    """Check settings of :func:`~.wandb_run.wandb_logger`, before anything is sent.

    Args:
        settings: Its arguments; those that are left to their default may be missing.

    Raises:
        UserError: wandb is not installed, or refuses one of them.
    """
    for key in ("project", "entity", "group", "job_type", "name"):
        value = settings.get(key)
        if value is not None and not (value.strip() and len(value) <= NAME_LENGTH):
            raise UserError(
                f"logger.wandb.{key} must have 1 to {NAME_LENGTH} characters, got {value[:40]!r}"
            )
    entities = {"logger.wandb.entity": settings.get("entity")}
    entities["WANDB_ENTITY"] = os.environ.get("WANDB_ENTITY")
    for key, entity in entities.items():
        if entity and re.search(r"[/\s]", entity):
            raise UserError(
                f"{key} must be the name of a user or a team, got {entity!r};"
                " the project is logger.wandb.project"
            )
    for key, known in CHOICES.items():
        if key in settings and settings[key] not in known:
            words = ", ".join(map(one_line, known))
            raise UserError(
                f"logger.wandb.{key} must be one of {words}; got {one_line(settings[key])}"
            )
    for key in ("start_timeout", "finish_timeout"):
        if key in settings and not settings[key] > 0:
            raise UserError(f"logger.wandb.{key} must be above 0 seconds, got {settings[key]}")
    wandb = import_wandb()
    try:
        wandb.Settings(project=settings["project"], run_tags=tuple(settings.get("tags", ())))
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"logger.wandb: {reason(error)}") from error
    if settings.get("mode") == "online" and not has_login(users_settings()):
        raise UserError("logger.wandb.mode=online needs a login: run wandb login, or leave it out")


def import_wandb() -> Any:
    """Import wandb.

    Raises:
        UserError: It is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError("logger=wandb needs wandb: pip install wandb") from None
    return wandb


def users_settings() -> Any:
    """Read wandb's settings from its files and environment variables.

    Raises:
        UserError: One of them is wrong.
    """
    wandb = import_wandb()
    key = os.environ.get("WANDB_API_KEY")
    if key is not None:
        os.environ["WANDB_API_KEY"] = key.strip()  # wandb refuses a line break at the end
    try:
        return wandb.setup().settings
    except (wandb.errors.UsageError, ValueError) as error:
        name, *_ = reason(error).split(":")
        variable = f"WANDB_{name.upper()}"
        shown = variable in os.environ and variable != "WANDB_API_KEY"
        given = f"; {variable}={os.environ[variable]:.40}" if shown else ""
        raise UserError(f"W&B: {reason(error)}{given}") from error


def has_login(settings: Any) -> bool:
    """Return whether wandb has credentials for its server, which is not contacted."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    if settings.api_key or settings.identity_token_file:
        return True
    host = settings.base_url
    try:
        return bool(wbauth.session_credentials(host=host) or wbauth.read_netrc_auth(host=host))
    except AuthenticationError:
        return True  # there are invalid ones: the start reports why
    except (OSError, ValueError) as error:  # wandb reads the file as UTF-8
        print(f"W&B: the logins in the netrc file cannot be read: {reason(error)}")
        return False


def choose_mode(given: str | None, users: Any) -> str:
    """Return the mode of a run: the given one, else the user's, but offline without a login."""
    if given is not None:
        return given
    disabled = os.environ.get("WANDB_DISABLED", "").strip().lower()
    if disabled in ("1", "true", "yes", "on", "y", "t"):  # what wandb takes for true
        return "disabled"
    if users.mode == "online" and not ("WANDB_MODE" in os.environ or has_login(users)):
        return "offline"
    mode: str = users.mode
    return mode


@contextmanager
def files_kept_in(folder: Path) -> Iterator[None]:
    """Within the block, let wandb copy the files of artifacts to ``folder`` until they are sent.

    By default it copies them to the home folder, where those of an offline run would be left
    behind when the run is moved or deleted.
    """
    users = os.environ.get(DATA_DIR)
    os.environ.setdefault(DATA_DIR, str(folder))
    try:
        yield
    finally:
        if users is None:
            del os.environ[DATA_DIR]


def flush_often(wandb: Any) -> dict[str, float]:
    """Return the setting that writes a run's file every second, if wandb has it."""
    name = "x_transaction_log_flush_interval"
    return {name: 1.0} if name in wandb.Settings.model_fields else {}


def quiet(wandb: Any) -> None:
    """Silence wandb except for errors: each retry prints a line."""
    wandb.termsetup(wandb.Settings(show_info=False, show_warnings=False), None)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)


def reason(error: Exception) -> str:
    """Return an error of wandb in one line."""
    listed = getattr(error, "errors", None)
    if callable(listed):  # of pydantic: the setting, and what is wrong with it
        first = listed()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    return reason_of(error)
