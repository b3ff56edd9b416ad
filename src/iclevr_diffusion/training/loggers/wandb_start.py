"""Start a W&B run, without the server if need be."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.training.loggers.wandb_files import STEP
from iclevr_diffusion.training.loggers.wandb_settings import (
    choose_mode,
    flush_often,
    import_wandb,
    quiet,
    reason,
    users_settings,
)
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import fits_utf8, in_shell

WITHOUT_SERVER = ("offline", "dryrun")


def start_run(
    arguments: dict[str, Any],
    folder: Path,
    mode: str | None,
    fallback: str,
    timeouts: dict[str, float],
) -> Any:
    """Start or continue the run of a folder, or by ``fallback`` an offline one if that fails.

    Args:
        arguments: Arguments of ``wandb.init``; ``mode`` and ``settings`` are added.
        folder: Folder of the run.
        mode: ``online``, ``offline``, ``disabled`` or None; see
            :func:`~.wandb_settings.choose_mode`.
        fallback: ``offline`` or ``error``.
        timeouts: Entries of wandb's settings that apply unless the user has set them.

    Raises:
        UserError: It cannot start.
    """
    wandb = import_wandb()
    if not fits_utf8(str(folder)):
        raise UserError(f"logger=wandb needs a run folder whose name is UTF-8, got {str(folder)!r}")
    users = users_settings()
    mode = choose_mode(mode, users)
    quiet(wandb)
    timeouts = {key: value for key, value in timeouts.items() if key not in users.model_fields_set}
    settings = wandb.Settings(
        **timeouts, **flush_often(wandb), finish_timeout_raises=True, silent=True
    )
    arguments |= {"mode": mode, "settings": settings}
    advice = f"To upload it later: wandb sync {in_shell(folder)}/wandb/offline-run-*"
    try:
        run = wandb.init(**arguments)
    except Exception as error:
        if mode in WITHOUT_SERVER or fallback == "error":
            instead = "; logger=csv trains without it"
            if fallback == "error":
                instead = "; logger.wandb.fallback=offline continues without the server"
            raise UserError(f"W&B: {reason(error)}{instead}") from error
        print(f"W&B: {reason(error)}; the training continues offline. {advice}")
        run = _start_offline(wandb, arguments)
    else:
        if mode in WITHOUT_SERVER:
            print(f"W&B is offline. {advice}")
        elif run.url and not users.silent:
            print(f"W&B: {run.url}")
    if not run.disabled:
        _define_metrics(run.define_metric)
    return run


def _start_offline(wandb: Any, arguments: dict[str, Any]) -> Any:
    """Start the run without the server, and without reports of errors to it."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    wandb.teardown()  # its process still has the run that did not start
    users_settings()
    quiet(wandb)
    arguments["mode"] = "offline"
    try:
        return wandb.init(**arguments)
    except Exception as error:
        raise UserError(f"W&B: {reason(error)}; logger=csv trains without it") from error


def _define_metrics(define_metric: Callable[..., Any]) -> None:
    """Name the x axis, and the best value of each loss, which the table of runs shows."""
    define_metric(STEP)
    define_metric("*", step_metric=STEP)
    for name, best in (("train/loss", "min"), ("val/loss", "min"), ("val/x0_error", "min")):
        define_metric(name, step_metric=STEP, summary=best)


def best_of(key: str) -> str | None:
    """Return whether the best value of ``score/<list>/<metric>`` is its ``max`` or ``min``.

    Returns None for other keys.
    """
    if not key.startswith("score/"):
        return None
    name = key.rpartition("/")[2]
    return "min" if name in METRICS and METRICS[name].higher_is_better is False else "max"
