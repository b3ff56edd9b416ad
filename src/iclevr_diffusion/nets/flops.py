"""What a pass through a network costs."""

import copy

import torch
from torch import Tensor, nn


def flops(net: nn.Module, *inputs: Tensor) -> int:
    """Operations of one call: matrix products and convolutions, a multiply-add counted as two.

    Nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports triton

    fake = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fake(*(tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops())
