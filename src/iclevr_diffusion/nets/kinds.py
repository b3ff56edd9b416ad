"""The networks that a diffusion model may have."""

from collections.abc import Container

from iclevr_diffusion.nets.experts import NoiseExperts
from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.nets.uvit import UViT

DiffusionNet = ConditionalUNet | UViT | NoiseExperts
DiffusionNetType = type[ConditionalUNet] | type[UViT] | type[NoiseExperts]


def kind_of_net(settings: Container[str]) -> DiffusionNetType:
    """The class that settings of these names are for.

    Only experts have a switch, and of the other two only a U-ViT has a depth.
    """
    kind: DiffusionNetType = UViT if "depth" in settings else ConditionalUNet
    if "switch" in settings:
        kind = NoiseExperts
    return kind
