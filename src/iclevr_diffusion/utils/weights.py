"""A network's weights: from a file into it, and some of them by name."""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from iclevr_diffusion.utils.files import warn_once

NO_MAP = (
    "%s: this file system refuses memory maps; weights are read into memory at once, this file's"
    " %.0f MB"
)


def load_pickle(path: Path, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU. Code in it is not run but refused.

    Args:
        mmap: map the file into memory where its file system can.

    Raises:
        Exception: of many kinds, where the file is truncated, something else, or holds code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange files torch says more than the error it raises
        if mmap:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, RuntimeError):  # damaged, or not to be mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
                warn_once(NO_MAP, path, path.stat().st_size / 1e6)
                return content
        return torch.load(path, map_location="cpu", weights_only=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and its metadata.

    Raises:
        OSError, SafetensorError: the file cannot be read, or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, RuntimeError, SafetensorError):  # damaged, or not to be mapped
        content = path.read_bytes()
        tensors = load(content)
        warn_once(NO_MAP, path, len(content) / 1e6)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return dict(tensors), json.loads(header).get("__metadata__", {})


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
