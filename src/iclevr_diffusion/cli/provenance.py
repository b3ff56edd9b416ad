"""The provenance of a run's results besides its settings: the code and the data."""

import hashlib
import json
import subprocess
from typing import Any

from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.utils.environment import versions

GIT_TIMEOUT = 5.0  # seconds


def provenance(datamodule: DataModule | EvaluatorData) -> dict[str, Any]:
    """Return plain values for the loggers: versions, a hash of the data, and the git commit.

    The hash is equal for data with the same frames, labels, image size and split. The commit is
    that of the repository of the current folder, with ``-dirty`` if files have changed since; it is
    left out where there is none.
    """
    identity = json.dumps(datamodule.identity(), sort_keys=True, default=str)
    result: dict[str, Any] = {
        "versions": versions(),
        "data_hash": hashlib.sha256(identity.encode()).hexdigest()[:16],
    }
    commit = git_commit()
    return result if commit is None else result | {"git_commit": commit}


def git_commit() -> str | None:
    """Return the commit of the repository of the current folder; None outside of one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT)
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
