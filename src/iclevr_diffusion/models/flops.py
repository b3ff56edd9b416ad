"""The cost of one pass through a network."""

import copy

import torch
from torch import Tensor, nn


def flops(net: nn.Module, *inputs: Tensor | None) -> int:
    """Count the floating-point operations of one call, on the meta device: nothing is computed.

    Matrix products and convolutions are counted, a multiply-add as two operations.

    Args:
        net: The network.
        inputs: Its positional arguments; only their shapes and dtypes matter.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it imports triton

    fake = copy.deepcopy(net).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        fake(*(None if tensor is None else tensor.to("meta") for tensor in inputs))
    return int(counter.get_total_flops())
