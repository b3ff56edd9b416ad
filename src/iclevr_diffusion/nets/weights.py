"""A network's weights: from a file into it, and some of them by name."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from iclevr_diffusion.files import warn_once

# What the initialisations without a hook of their own call, such as xavier_normal_.
RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_)
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


@contextmanager
def nothing_allocated() -> Iterator[None]:
    """Inside, networks are built on the meta device, and nothing is initialised: see :func:`fill`.

    There, torch's random initialisations would import torch.compile's implementation, which takes
    seconds.
    """
    with torch.device("meta"), _NoInitialisation():
        yield


class _NoInitialisation(TorchFunctionMode):
    """Inside, what ``torch.nn.init`` offers returns its tensor as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return args[0] if func in RANDOM_FILLS else func(*args, **kwargs)


def fill(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network that was built on the meta device (:func:`nothing_allocated`) its weights.

    So a description that asks for a network of terabytes is refused before it takes any memory.

    Args:
        net: all of its buffers are in its state dict.
        state: the weights by name.

    Raises:
        ValueError: they are of another network, or hold NaN or infinite values.
    """
    described = net.state_dict()
    if {key: value.shape for key, value in described.items()} != {
        key: value.shape for key, value in state.items()
    }:
        raise ValueError("the weights do not fit the network that is described beside them")
    check_finite(state)
    # Copies, in memory: the file they are mapped from may be replaced.
    copies = {
        key: torch.empty(value.shape, dtype=described[key].dtype).copy_(value)
        for key, value in state.items()
    }
    net.load_state_dict(copies, assign=True)  # to_empty() would import what traces graphs


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
