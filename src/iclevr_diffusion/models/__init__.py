"""Networks: denoisers, and the generator and discriminator of a GAN."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.models.dcgan import Discriminator, Generator
    from iclevr_diffusion.models.detail import DetailNet
    from iclevr_diffusion.models.experts import NoiseExperts
    from iclevr_diffusion.models.known_networks import register_network
    from iclevr_diffusion.models.layout import Layout
    from iclevr_diffusion.models.protocol import CropNetwork, DenoisingNetwork
    from iclevr_diffusion.models.unet import ConditionalUNet
    from iclevr_diffusion.models.uvit import UViT

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

__getattr__, __dir__ = lazy_attributes(
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
