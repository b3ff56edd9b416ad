"""Labels that also count objects of no clear shape."""

import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS

NUM_OUTPUTS = NUM_LABELS + len(COLORS)


def with_colors(labels: Tensor) -> Tensor:
    """Extend labels of clear objects, (N, L), to (N, L + 8)."""
    return F.pad(labels, (0, len(COLORS)))
