"""Weights of a run with an average of another length, reconstructed from its snapshots."""

from pathlib import Path

from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import run_of
from iclevr_diffusion.training.power_ema import SNAPSHOTS, check_length, reconstruct
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.weights import shapes

MAX_ERROR = 0.1  # of the profile, relative


def load_with_length(weights: Path, length: float | None) -> Model | GAN:
    """Load weights; with a length, the average of that length in their place.

    Args:
        weights: As :func:`~iclevr_diffusion.diffusion.weights_path.find_weights` returns them.
        length: The length of the average; None for the weights as they are.

    Raises:
        UserError: The length is out of range, the weights are in no run with snapshots, or the
            snapshots are too few for that length or of another network.
    """
    model = load_model(weights)
    if length is None:
        return model
    try:
        check_length(length)
    except ValueError as error:
        raise UserError(f"ema_length {error}") from None
    folder = run_of(weights) / SNAPSHOTS
    averaged, distance = reconstruct(folder, length)
    if distance > MAX_ERROR:
        raise UserError(
            f"ema_length={length}: the snapshots in {folder} reach it only with an error of"
            f" {distance:.0%}; choose a length nearer to theirs, or train with a smaller"
            " callbacks.posthoc_ema.every_n_updates"
        )
    state = model.net.state_dict()
    if not shapes(averaged).items() <= shapes(state).items():
        raise UserError(f"ema_length={length}: the snapshots in {folder} are of another network")
    model.net.load_state_dict(state | averaged)
    return model
