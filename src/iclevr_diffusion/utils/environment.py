"""The device that a network runs on."""

import platform
from importlib.metadata import version

import torch

from iclevr_diffusion import __version__
from iclevr_diffusion.utils.errors import UserError


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()}, {device.type}"
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA, or Apple's MPS, where there is one, else the CPU.

    On CUDA, matrix products may round to TF32 from now on, as convolutions do anyway.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {
        "iclevr-diffusion": __version__,
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
    }
