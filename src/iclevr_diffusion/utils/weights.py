"""Loading, checking and selecting the weights of a network."""

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

from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import warn_once

# What the initializations without a hook of their own call, such as xavier_normal_.
RANDOM_FILLS = (Tensor.normal_, Tensor.uniform_)
NO_MAP = "%s: this file system refuses memory maps; weights are read into memory at once (%.0f MB)"


def load_pickle(path: Path, mmap: bool = False) -> Any:
    """Load a file of ``torch.save`` on the CPU. Code in it is refused.

    With ``mmap`` the file is memory-mapped, if its file system can.

    Raises:
        Exception: One of many kinds, if the file is truncated, of another format, or holds code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns before it raises an error
        if mmap:
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except (OSError, RuntimeError):  # damaged, or memory maps are refused
                content = torch.load(path, map_location="cpu", weights_only=True)
                warn_once(NO_MAP, path, path.stat().st_size / 1e6)
                return content
        return torch.load(path, map_location="cpu", weights_only=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Load the tensors of a safetensors file on the CPU, and its metadata.

    Raises:
        OSError, SafetensorError: The file cannot be read, or has another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, RuntimeError, SafetensorError):  # damaged, or memory maps are refused
        content = path.read_bytes()
        tensors = load(content)
        warn_once(NO_MAP, path, len(content) / 1e6)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return dict(tensors), json.loads(header).get("__metadata__", {})


@contextmanager
def nothing_allocated() -> Iterator[None]:
    """Within the context, networks are built on the meta device without initialization.

    :func:`fill` gives them their weights. On the meta device, torch's random initialization would
    import the implementation of torch.compile, which takes seconds.
    """
    with torch.device("meta"), _NoInitialization():
        yield


class _NoInitialization(TorchFunctionMode):
    """Within the context, functions of ``torch.nn.init`` return their tensor unchanged."""

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
    """Load the weights of a network that was built by :func:`nothing_allocated`.

    Thus the description of a network of terabytes is refused before it uses any memory.

    Args:
        net: The network; all of its buffers are in its state dict.
        state: The weights by name.

    Raises:
        ValueError: The weights belong to another network, or contain NaN or infinite values.
    """
    described = net.state_dict()
    if shapes(described) != shapes(state):
        raise ValueError("the weights do not match the network that is described beside them")
    check_finite(state)
    # Copies in memory: the mapped file may be replaced.
    copies = {
        key: torch.empty(value.shape, dtype=described[key].dtype).copy_(value)
        for key, value in state.items()
    }
    net.load_state_dict(copies, assign=True)  # to_empty() would import the graph tracer


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of each weight by name."""
    return {name: value.shape for name, value in state.items()}


def count_parameters(net: nn.Module) -> int:
    """Return the number of a network's parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def matrices_but(net: nn.Module, ends: Sequence[str]) -> list[nn.Parameter]:
    """Return the weights of two or more dimensions whose names contain none of ``ends``."""
    return [
        weight
        for name, weight in net.named_parameters()
        if weight.ndim > 1 and not any(end in name for end in ends)
    ]


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ValueError("the weights contain NaN or infinite values")


def convert(net: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Convert a network in place to a dtype.

    Raises:
        UserError: Its weights exceed the range of that dtype.
    """
    nn.Module.to(net, dtype)  # diffusers' own to() warns
    try:
        check_finite(net.state_dict())
    except ValueError:
        raise UserError(
            f"these weights exceed the range of {dtype_name(dtype)}; use float32"
        ) from None
    return net


def dtype_name(dtype: torch.dtype | None) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")


def set_to_zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
