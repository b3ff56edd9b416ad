"""Checks of the W&B settings, and the user's own settings and login."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from iclevr_diffusion.utils.errors import UserError

FALLBACKS = ("offline", "error")
NAME_LENGTH = 128  # characters of a project, group or display name


def check_wandb_settings(
    project: str, group: str | None, tags: Sequence[str], fallback: str, **seconds: float
) -> None:
    """Check the settings in ``conf/logger/wandb.yaml``, before anything is sent.

    Raises:
        UserError: wandb is not installed, or refuses one of them.
    """
    for key, value in {"project": project, "group": group}.items():
        if value is not None and not (value.strip() and len(value) <= NAME_LENGTH):
            raise UserError(
                f"logger.wandb.{key} must have 1 to {NAME_LENGTH} characters, got {value[:40]!r}"
            )
    if fallback not in FALLBACKS:
        raise UserError(
            f"logger.wandb.fallback must be one of {', '.join(FALLBACKS)}; got {fallback!r}"
        )
    for key, limit in seconds.items():
        if not limit > 0:
            raise UserError(f"logger.wandb.{key} must be above 0 seconds, got {limit}")
    wandb = import_wandb()
    try:
        wandb.Settings(project=project, run_tags=tuple(tags))
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"logger.wandb: {reason(error)}") from error


def import_wandb() -> Any:
    """Import wandb.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError("logger=wandb needs wandb: pip install wandb") from None
    return wandb


def users_settings() -> Any:
    """Read wandb's settings from its files and environment variables.

    Raises:
        UserError: one of them is wrong.
    """
    wandb = import_wandb()
    key = os.environ.get("WANDB_API_KEY")
    if key is not None:
        os.environ["WANDB_API_KEY"] = key.strip()  # wandb refuses a line break at the end
    try:
        return wandb.setup().settings
    except (wandb.errors.UsageError, ValueError) as error:
        raise UserError(f"W&B: {reason(error)}") from error


def has_login(settings: Any) -> bool:
    """Whether wandb has credentials for its server, which is not contacted."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    if settings.api_key or settings.identity_token_file:
        return True
    host = settings.base_url
    try:
        return bool(wbauth.session_credentials(host=host) or wbauth.read_netrc_auth(host=host))
    except AuthenticationError:
        return True  # there are invalid ones: the start reports why


def is_set(settings: Any, name: str) -> bool:
    """Whether the user has set an entry of wandb's settings."""
    return name in settings.model_fields_set


def is_true(value: str) -> bool:
    """Whether wandb takes the value of an environment variable for true."""
    return value.strip().lower() in ("1", "true", "yes", "on", "y", "t")


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
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
