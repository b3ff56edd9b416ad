"""The W&B run of a finished or stopped training, opened again by other commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home, is_used, used_alone
from iclevr_diffusion.utils.status import read_status

if TYPE_CHECKING:
    from iclevr_diffusion.training.loggers import WandbRun

LEVELS = 3  # from weights up to their run: run/checkpoints/best.ckpt


def find_wandb_run(setting: bool | str | None, own: Path | None) -> Path | None:
    """Return the run folder of the W&B run that a command is to log into.

    Args:
        setting: ``wandb_run``: a run folder; True for that of ``own``; None or False for none.
        own: What the command is about: a run folder, or weights in one; None for several.

    Raises:
        UserError: There is no W&B run, or the training still writes to it.
    """
    from iclevr_diffusion.training.loggers.wandb_files import settings_of_run
    from iclevr_diffusion.training.loggers.wandb_settings import import_wandb

    if setting is None or setting is False:
        return None
    if setting is True and own is None:
        raise UserError("wandb_run=true needs one run; write wandb_run=<run folder>")
    import_wandb()
    named = own if isinstance(setting, bool) else Path(expand_home(setting))
    assert named is not None
    above = (named, *named.absolute().parents)[:LEVELS] if setting is True else (named,)
    for folder in above:
        if settings_of_run(folder):
            if is_used(folder):
                raise UserError(f"{folder}: another process is training there")
            return folder
    written = "true" if setting is True else setting
    raise UserError(
        f"wandb_run={written}: {named} has no W&B run; one begins with train … logger=wandb"
    )


@contextmanager
def wandb_run_of(folder: Path) -> Iterator["WandbRun"]:
    """Within the block, continue the W&B run of a run folder.

    W&B shows the run as finished afterwards, or as failed if its training was not finished.

    Raises:
        UserError: Another process uses the folder, or W&B cannot start.
    """
    from iclevr_diffusion.training.loggers import wandb_logger
    from iclevr_diffusion.training.loggers.wandb_files import settings_of_run

    with used_alone(folder):
        run = wandb_logger(folder, **settings_of_run(folder))
        try:
            yield run
        finally:
            run.finish(0 if read_status(folder).get("status") == "finished" else 1)
