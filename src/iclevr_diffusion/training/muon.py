"""Muon for the weights inside a network, AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: the steepest at zero
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Muon for matrices: updates by the momentum with all singular values set to about one.

    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the step scaled to the root
    mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both have learning
    rates and weight decays of the same size. The weight (out, in, k, k) of a convolution is treated
    as a matrix (out, in k²). torch.optim.Muon takes matrices only, and computes in bfloat16, which
    most CPUs lack.

    Args:
        matrices: The parameters for Muon, each with two dimensions or more.
        others: The parameters for AdamW.
        matrix_lr: Muon's learning rate.
        momentum: Nesterov momentum of Muon, in [0, 1).
        lr, betas, eps: AdamW's.
        weight_decay: Decoupled, for both: each step multiplies weights by 1 - lr · weight_decay.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        matrix_lr: float,
        momentum: float = 0.95,
        **adamw: Any,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {"params": list(others), "momentum": None},
            {"params": list(matrices), "momentum": momentum, "lr": matrix_lr},
        ]
        super().__init__(groups, **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; ``closure`` computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if group["momentum"] is None]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["momentum"] is not None:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                rows = len(parameter)
                shape = rows, parameter.numel() // rows
                by_shape.setdefault(shape, []).append(parameter)
        for shape, parameters in by_shape.items():
            updates = orthogonal(
                torch.stack([self._momentum(p, group["momentum"]).view(shape) for p in parameters])
            )
            scale = 0.2 * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Return the Nesterov update: the gradient, interpolated towards the momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW expects it when its state is restored
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum).contiguous()


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate U Vᵀ of matrices U S Vᵀ, (B, m, n), to singular values of 0.7 to 1.2.

    Five Newton-Schulz iterations of degree five, X ← (a + b G + c G²) X with G = X Xᵀ, as Jordan et
    al. 2024. All factors are polynomials of the first G and commute, so they are multiplied first,
    at the size of the matrices' shorter side, and X only once at the end.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    gram = x @ x.mT
    one = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    product = one.expand_as(gram)
    for _ in range(ITERATIONS):
        factor = a * one + torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        product = factor @ product
        gram = factor @ factor @ gram
    result: Tensor = product @ x
    return result.mT if tall else result
