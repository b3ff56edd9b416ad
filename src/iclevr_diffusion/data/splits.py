"""The split of frames into training and validation."""

import torch
from torch import Tensor

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import keyed_generator

SPLIT_SEED = 0


def check_fills_a_batch(frames: int, batch_size: int, processes: int) -> None:
    """Refuse a training set that does not fill one batch of all processes.

    Raises:
        UserError: It does not.
    """
    needed = batch_size * processes
    if frames < needed:
        raise UserError(
            f"{frames} training frames do not fill one batch of {needed}; lower data.batch_size"
        )


def split_by_sequence(sequences: Tensor, val_fraction: float) -> tuple[Tensor, Tensor]:
    """Return indices of training and validation frames, ascending, with no sequence in both.

    Args:
        sequences: int64, (N,), the sequence of each frame.
        val_fraction: Share of the sequences used for validation, in [0, 1). Above zero, there is at
            least one of these, unless there is only one in all.
    """
    unique = sequences.unique()
    count = round(val_fraction * len(unique))
    if val_fraction > 0:
        count = min(max(count, 1), len(unique) - 1)
    generator = keyed_generator("split", SPLIT_SEED)
    held_out = unique[torch.randperm(len(unique), generator=generator)[:count]]
    is_val = torch.isin(sequences, held_out)
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()
