"""The device that a network runs on."""

import platform
from importlib.metadata import version

import torch

from iclevr_diffusion import __version__
from iclevr_diffusion.utils.errors import UserError


def device_name(device: torch.device) -> str:
    """Return the name of a device, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()}, {device.type}"
    threads = torch.get_num_threads()
    return f"{platform.machine()} processor, {threads} thread{'s' * (threads != 1)}"


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA or Apple's MPS if available, else the CPU.

    On CUDA, matrix products may use TF32 afterwards, as convolutions do by default.

    Raises:
        UserError: There is no such device.
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
    """Return the versions that results depend on."""
    return {
        "iclevr-diffusion": __version__,
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
    }
