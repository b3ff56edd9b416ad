"""The networks that a diffusion model may have."""

from collections.abc import Container

from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.models.uvit import UViT

DiffusionNet = ConditionalUNet | UViT | DetailNet | NoiseExperts
DiffusionNetType = type[ConditionalUNet] | type[UViT] | type[DetailNet] | type[NoiseExperts]


def kind_of_net(settings: Container[str]) -> DiffusionNetType:
    """The class that settings of these names are for.

    Only experts have a switch, only a U-ViT has a depth, and of the other two only the net for
    crops has a standard deviation of the data.
    """
    kind: DiffusionNetType = ConditionalUNet
    if "switch" in settings:
        kind = NoiseExperts
    elif "depth" in settings:
        kind = UViT
    elif "data_std" in settings:
        kind = DetailNet
    return kind
