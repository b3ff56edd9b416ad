"""The networks that a diffusion model may have."""

from collections.abc import Container

from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.nets.uvit import UViT

DiffusionNet = ConditionalUNet | UViT


def kind_of_net(settings: Container[str]) -> type[ConditionalUNet] | type[UViT]:
    """The class that settings of these names are for: of the two, only a U-ViT has a depth."""
    kind: type[ConditionalUNet] | type[UViT] = UViT if "depth" in settings else ConditionalUNet
    return kind
