"""Facts about the training of weights, in words."""

from pathlib import Path

from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.diffusion.weights_path import run_of, weights_sum
from iclevr_diffusion.utils.files import SUMMARY
from iclevr_diffusion.utils.typed_json import read_dataclass


def run_facts(weights: Path) -> dict[str, str]:
    """Return what the ``summary.json`` of the weights' run says of their training.

    It is used if it is of these weights, by their checksum; otherwise nothing is known.

    Raises:
        UserError: The file is damaged.
    """
    path = run_of(weights) / SUMMARY
    summary = read_dataclass(Summary, path) if path.is_file() else None
    if summary is None or summary.weights.sha256 != weights_sum(weights):
        return {}
    return {
        "run": f"{summary.name}, seed {summary.seed}",
        "images seen": f"{summary.images_seen:,}",
        "time": f"{(summary.seconds or 0) / 60:.0f} minutes, {summary.machine.device}",
        "chosen by": summary.weights.chosen_by,
    }
