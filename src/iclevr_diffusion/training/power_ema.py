"""Power-function averages of weights, and the choice of their length after the training.

Karras et al. 2024, arXiv 2312.02696, section 3. The average after update t is

    θ̂(t) = β(t) θ̂(t - 1) + (1 - β(t)) θ(t),   β(t) = (1 - 1 / t)^(γ + 1),

so that the weights of update s contribute (s^(γ + 1) - (s - 1)^(γ + 1)) / t^(γ + 1) to it: its
*profile*. The length of an average is the standard deviation of its profile relative to t: γ is
16.97 for .05 and 6.94 for .10. Any profile is approximated by a linear combination of those of
stored averages, found by least squares, and the same combination of the weights is the average of
that length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.weights import check_finite, load_tensors, shapes

SNAPSHOTS = "ema_snapshots"  # the folder of a run with the stored averages
LENGTHS = (0.005, 0.28)  # of a uniform average: .289
MAX_BINS = 10_000  # of updates, for the least squares; up to so many updates it is exact
FILE_NAME = re.compile(r"(\d+)_(0\.\d+)\.safetensors")


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        updates: Optimizer updates so far.
        length: The length of the average.
        path: A safetensors file; empty in computations without weights.
    """

    updates: int
    length: float
    path: Path = Path()


def check_length(length: float) -> None:
    """Check that a length can be computed.

    Raises:
        ValueError: It is out of range.
    """
    low, high = LENGTHS
    if not low <= length <= high:
        raise ValueError(f"must be between {low} and {high}, got {length}")


def exponent(length: float) -> float:
    """Return γ, the largest root of (γ + 1) / ((γ + 2)² (γ + 3)) = length²."""
    t = length**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def decay(gamma: float, update: int) -> float:
    """Return β of the update with that number, counted from 1."""
    return float((1 - 1 / update) ** (gamma + 1))


def coefficients(
    snapshots: Sequence[Snapshot], length: float, updates: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the combination of snapshots that approximates an average of another length.

    Args:
        snapshots: N averages, none of them later than ``updates``.
        length: The length of the average.
        updates: At which it ends.

    Returns:
        N coefficients whose sum is 1, and the distance of their profile from the wanted one,
        relative to the latter.
    """
    ends = [0, updates, *(snapshot.updates for snapshot in snapshots)]
    bins = np.linspace(0, updates, min(updates, MAX_BINS) + 1).round()
    edges = np.unique(np.concatenate([bins, np.array(ends, dtype=np.float64)]))
    scale = np.sqrt(np.diff(edges))
    profiles = np.stack([_profile(s.length, s.updates, edges) / scale for s in snapshots], axis=1)
    wanted = _profile(length, updates, edges) / scale
    solution = np.linalg.lstsq(profiles, wanted, rcond=None)[0]
    solution = solution / solution.sum()
    error = np.linalg.norm(profiles @ solution - wanted) / np.linalg.norm(wanted)
    return solution, float(error)


def _profile(
    length: float, updates: int, edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the share of an average that the updates between neighboring edges contribute."""
    return np.diff((edges / updates).clip(max=1.0) ** (exponent(length) + 1))


def file_name(updates: int, length: float) -> str:
    """Return the name of a snapshot's file."""
    return f"{updates:08d}_{length:g}.safetensors"


def find_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots in a folder, in order of their updates."""
    found = [
        (FILE_NAME.fullmatch(path.name), path) for path in sorted(folder.glob("*.safetensors"))
    ]
    return [Snapshot(int(match[1]), float(match[2]), path) for match, path in found if match]


def reconstruct(folder: Path, length: float) -> tuple[dict[str, Tensor], float]:
    """Reconstruct the weights of an average of any length, which ends at the newest snapshot.

    Returns:
        The averaged tensors by name, float32, and the error of :func:`coefficients`.

    Raises:
        UserError: There are no snapshots, or one is damaged.
    """
    snapshots = find_snapshots(folder)
    if not snapshots:
        raise UserError(f"{folder}: no snapshots there; train with callbacks=posthoc_ema")
    weights, error = coefficients(snapshots, length, snapshots[-1].updates)
    total: dict[str, Tensor] = {}
    for snapshot, weight in zip(snapshots, weights.tolist(), strict=True):
        state = _read(snapshot.path)
        if not total:
            total = {
                name: torch.zeros_like(part, dtype=torch.float64) for name, part in state.items()
            }
        if shapes(state) != shapes(total):
            raise UserError(f"{snapshot.path}: these weights are not those of the other snapshots")
        for name, part in state.items():
            total[name].add_(part.double(), alpha=weight)
    return {name: part.float() for name, part in total.items()}, error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state, _ = load_tensors(path)
        check_finite(state)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: damaged snapshot: {error}") from error
    return state
