"""Networks whose weights are in half precision, for callers in single precision."""

from typing import Any

from torch import Tensor, nn


class HalfPrecision(nn.Module):
    """A network that is given float32 and returns float32, whatever the dtype of its weights.

    It is a denoising network or a GAN's generator, whose other attributes it has.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Call the network with its own dtype."""
        dtype = next(self.net.parameters()).dtype
        cast = [x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs]
        output: Tensor = self.net(*cast).float()
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("net"), name)
