"""An unfinished run of the same command, which the user may have meant to resume."""

from collections.abc import Sequence
from pathlib import Path

from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.utils.files import is_used
from iclevr_diffusion.utils.status import STATUS, read_status


def unfinished_run(folder: Path, overrides: Sequence[str]) -> Path | None:
    """Return the newest run beside a new one that has the same command and can be resumed.

    Args:
        folder: Of the new run.
        overrides: Of its command line, in any order.

    Returns:
        A folder with a checkpoint, whose run was stopped, failed or killed; None if there is none.
    """
    others = [path.parent for path in folder.parent.glob(f"*/{STATUS}") if path.parent != folder]
    for run in sorted(others, key=lambda run: (run / STATUS).stat().st_mtime, reverse=True):
        status = read_status(run)
        is_same = _without_resume(status.get("overrides")) == _without_resume(overrides)
        is_over = status.get("status") == "finished" or is_used(run)
        if is_same and (run / "checkpoints" / LAST).is_file() and not is_over:
            return run
    return None


def _without_resume(overrides: object) -> list[str]:
    words = overrides if isinstance(overrides, list | tuple) else []
    return sorted(str(word) for word in words if not str(word).startswith("resume="))
