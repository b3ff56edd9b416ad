"""Networks: denoisers, and the generator and discriminator of a GAN."""

from typing import Any

from iclevr_diffusion.utils.lazy import lazy_attributes

__all__ = [
    "ConditionalUNet",
    "CropNetwork",
    "DenoisingNetwork",
    "DetailNet",
    "Discriminator",
    "Generator",
    "Layout",
    "NoiseExperts",
    "UViT",
    "register_network",
]

_load = lazy_attributes(
    __name__,
    ConditionalUNet="unet",
    CropNetwork="protocol",
    DenoisingNetwork="protocol",
    DetailNet="detail",
    Discriminator="dcgan",
    Generator="dcgan",
    Layout="layout",
    NoiseExperts="experts",
    UViT="uvit",
    register_network="known_networks",
)


def __getattr__(name: str) -> Any:
    return _load(name)


def __dir__() -> list[str]:
    return __all__
