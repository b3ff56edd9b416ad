"""The weights that a path refers to: a weights folder, runs, a checkpoint, or the Hub."""

import hashlib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from iclevr_diffusion.diffusion.hub import (
    NETWORK_FOLDERS,
    fetch_weights,
    hub_name,
    is_on_hub,
    name_of_page,
)
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, SUMMARY
from iclevr_diffusion.utils.typed_json import read_dataclass

PRETRAINED = "pretrained"  # as a path: the weights in the package
PRETRAINED_FOLDER = Path(__file__).parent / PRETRAINED


def find_weights(path: Path) -> Path:
    """Return the weights folder or checkpoint file that a path refers to.

    Args:
        path: ``pretrained``, a weights folder, a run folder (its ``weights/``, else its best or
            last checkpoint), a folder of runs (the newest one with weights), a checkpoint, or
            ``hf://user/name`` (:func:`~.hub.fetch_weights`).

    Raises:
        UserError: There are no weights.
    """
    if is_on_hub(path):
        return fetch_weights(path)
    if name := name_of_page(path):
        raise UserError(f"weights is the address of a web page; write weights={name}")
    path = path.expanduser()
    candidates: Iterable[Path] = [path]
    if path == Path(PRETRAINED):
        candidates = [PRETRAINED_FOLDER]
    elif path.is_dir():
        runs = sorted((run for run in path.iterdir() if run.is_dir()), key=_start, reverse=True)
        candidates = chain([path], (weights for run in (path, *runs) for weights in _of_run(run)))
    for candidate in candidates:
        configs = (candidate / name / "config.json" for name in NETWORK_FOLDERS)
        if candidate.is_file() or any(config.is_file() for config in configs):
            return candidate
    raise UserError(
        f"weights={path}: no weights there; give a run folder (outputs/<experiment>/<run>), its"
        " weights/ folder, a .ckpt file or hf://user/name, or leave weights out to use the packaged"
        " ones"
    )


def run_of(weights: Path) -> Path:
    """Return the run folder of weights, as :func:`find_weights` returns them."""
    folder = weights.absolute().parent
    return folder.parent if weights.is_file() else folder


def weights_name(path: Path) -> str:
    """Return the name that leads :func:`find_weights` to these weights again."""
    return PRETRAINED if path == PRETRAINED_FOLDER else hub_name(path) or str(path)


def weights_sum(path: Path) -> str:
    """Return the SHA-256 of a weights file.

    Args:
        path: A weights folder or a checkpoint, as :func:`find_weights` returns it.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}"))
    with files[0].open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _start(run: Path) -> tuple[float, str]:
    """Return a sort key of runs: the last start, as for ``resume=true``; others first, by name."""
    config = run / CONFIG
    return (config.stat().st_mtime if config.is_file() else 0.0), run.name


def _of_run(run: Path) -> list[Path]:
    """Return the candidates of a run, best first.

    Published weights come after a best checkpoint of a later step: the run was resumed.
    """
    weights, summary = run / "weights", run / SUMMARY
    best, last = (run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    if best.is_file() and summary.is_file():
        published = read_dataclass(Summary, summary).weights.step
        if read_checkpoint(best)["progress"]["steps"] > published:
            return [best, weights, last]
    return [weights, best, last]
