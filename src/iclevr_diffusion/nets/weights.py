"""Weights from a file into a network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fill(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network that was built on the meta device its weights, on the CPU.

    So a description that asks for a network of terabytes is refused before it takes any memory.

    Args:
        net: all of its buffers are in its state dict.
        state: the weights by name.

    Raises:
        ValueError: they are of another network, or hold NaN or infinite values.
    """
    expected = {key: value.shape for key, value in net.state_dict().items()}
    if expected != {key: value.shape for key, value in state.items()}:
        raise ValueError("the weights do not fit the network that is described beside them")
    check_finite(state)
    net.to_empty(device="cpu")
    net.load_state_dict(state)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that would put out nothing but NaN.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ValueError("the weights hold NaN or infinite values")
