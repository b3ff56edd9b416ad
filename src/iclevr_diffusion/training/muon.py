"""Muon for the weights inside a network, AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024: the steepest at zero
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Moves each weight matrix by its momentum with all singular values made about one.

    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the step scaled to the root
    mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both take learning
    rates and weight decays of one size. A convolution's weight (out, in, k, k) counts as a matrix
    (out, in k²). torch.optim.Muon takes matrices only, and computes in bfloat16, which most
    processors do not have.

    Args:
        matrices: the parameters that Muon moves, each with two dimensions or more.
        others: those that AdamW moves.
        matrix_lr: Muon's learning rate.
        momentum: Muon's, Nesterov's kind, in [0, 1).
        lr, betas, eps: AdamW's.
        weight_decay: of both; the share that a step takes away is times the learning rate.
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
        """One step; ``closure`` computes the gradients."""
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
        """The gradient, looked at from where the momentum will have carried it."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW, when it is restored, looks for one
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum).contiguous()


def orthogonal(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each of the matrices U S Vᵀ, (B, m, n): singular values of about 0.7 to 1.2.

    Five Newton-Schulz iterations of degree five, X ← (a + b G + c G²) X with G = X Xᵀ, as Jordan et
    al. 2024. All factors are polynomials of the first G and commute, so they are multiplied among
    themselves, as small as the matrices' shorter side, and X only once at the end.
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
