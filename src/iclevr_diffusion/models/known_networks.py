"""The networks that saved weights may name.

A weights file names its class; the class is looked up here and never imported by name, so that
nothing in a downloaded file decides what code is loaded.
"""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import nn

from iclevr_diffusion.models.dcgan import Generator
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.protocol import DenoisingNetwork
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.registry import CLASS_NAME, Registry

NetworkClass = TypeVar("NetworkClass", bound=type[nn.Module])

NETWORKS: Registry[type[nn.Module]] = Registry("network")


def register_network(network: NetworkClass) -> NetworkClass:
    """Register a network's class under its name, so that its weights can be loaded.

    Use it as a decorator::

        @register_network
        class MyNet(ModelMixin, ConfigMixin): ...

    Raises:
        ValueError: Another class of that name is registered.
    """
    NETWORKS.add(network.__name__, network)
    return network


for _network in (ConditionalUNet, UViT, DetailNet, NoiseExperts, Generator):
    register_network(_network)


def network_config(net: nn.Module) -> dict[str, Any]:
    """Return a network's class name and arguments, as plain values."""
    arguments = cast(DenoisingNetwork, net).config.items()
    return {CLASS_NAME: type(net).__name__} | {
        key: _plain(value) for key, value in arguments if not key.startswith("_")
    }


def network_from_config(config: Mapping[str, Any]) -> nn.Module:
    """Create the network of :func:`network_config`, or of a ``config.json`` of diffusers.

    Raises:
        ValueError: The class is unknown, or an argument is out of range.
        TypeError: An argument is missing or unknown.
    """
    # Names with an underscore are diffusers' own.
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    return NETWORKS.find(config.get(CLASS_NAME))(**arguments)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, list | tuple) else value
