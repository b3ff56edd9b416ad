"""Transformer blocks of the :class:`~.uvit.UViT`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iclevr_diffusion.utils.weights import set_to_zero


class TransformerBlock(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by the condition.

    This is the adaLN-Zero block of Peebles & Xie 2022, arXiv 2212.09748, section 3.2, initialized
    to the identity. Queries and keys are normalized to a root mean square of 1, without a gain, so
    that no logit exceeds √head_dim (after Dehghani et al. 2023, arXiv 2302.05442, section 2).
    """

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        set_to_zero(self.modulation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x: (B, N, width); condition: (B, width)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(condition)[:, None].chunk(
            6, dim=-1
        )
        x = torch.addcmul(x, self._attend(torch.addcmul(shift1, self.norm1(x), 1 + scale1)), gate1)
        h = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, self.mlp_out(F.gelu(self.mlp_in(h), approximate="tanh")), gate2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        heads = self.qkv(x).view(batch, count, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        query, key = F.rms_norm(query, query.shape[-1:]), F.rms_norm(key, key.shape[-1:])
        attended = attention(query, key, value)
        result: Tensor = self.attention_out(attended.transpose(1, 2).reshape(batch, count, width))
        return result


def is_autocast_on(device_type: str) -> bool:
    """Return whether autocast is on; False for device types without it, such as "meta"."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def no_float16(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off if it is to float16."""
    if is_autocast_on(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, N, head_dim).

    On CPUs, the backward pass of PyTorch's kernel is several times slower than two matrix products.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    logits = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    result: Tensor = logits.softmax(-1).to(value.dtype) @ value
    return result
