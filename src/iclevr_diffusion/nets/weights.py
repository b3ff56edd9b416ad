"""A network's weights: from a file into it, and some of them by name."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def load_pickle(path: Path, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU. Code in it is not run but refused.

    Raises:
        Exception: of many kinds, where the file is truncated, something else, or holds code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange files torch says more than the error it raises
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


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


def matrices_but(net: nn.Module, ends: Sequence[str]) -> list[nn.Parameter]:
    """The weights of two dimensions and more whose names hold none of ``ends``."""
    return [
        weight
        for name, weight in net.named_parameters()
        if weight.ndim > 1 and not any(end in name for end in ends)
    ]


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that would put out nothing but NaN.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ValueError("the weights hold NaN or infinite values")
