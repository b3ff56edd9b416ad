"""What several test files need."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the course's real frames, which are not part of the project."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ICLEVR_SHARED", repository / "../shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real frames: {folder} is missing (ICLEVR_SHARED names another place)")
    return folder
