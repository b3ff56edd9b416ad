"""The device that a network runs on."""

import platform
from importlib.metadata import version

import torch

from iclevr_diffusion import __version__
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import one_line


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
        one = torch.ones(1, device=name)
        one.add(1).item()  # some devices are known to torch, but compute nothing here
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name}: {one_line(error, 100)}; use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    device = one.device
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
