"""Operators that the tracer of torch.onnx does not know, in terms of those of ONNX."""

from typing import Any

import torch
from torch.onnx import symbolic_helper

from iclevr_diffusion.utils.errors import UserError


def register(opset: int) -> None:
    """Teach the tracer the operators of this project's networks."""
    add = torch.onnx.register_custom_op_symbolic  # type: ignore[attr-defined]
    add("aten::sort", _stable_sort, opset)
    add("aten::rms_norm", _rms_norm, opset)


def _stable_sort(g: Any, values: Any, stable: Any, dim: Any, descending: Any) -> Any:
    """Sort by TopK, which keeps the order of equal values."""
    axis = symbolic_helper._get_const(dim, "i", "dim")
    size = g.op("Shape", values, start_i=axis, end_i=axis + 1)
    largest = symbolic_helper._get_const(descending, "i", "descending")
    return g.op("TopK", values, size, axis_i=axis, largest_i=largest, outputs=2)


def _rms_norm(g: Any, x: Any, shape: Any, weight: Any, eps: Any) -> Any:
    """Divide by √(mean(x²) + ε) over the last axis; ε as torch's default.

    Raises:
        UserError: There is a gain or another ε: no network here has them.
    """
    if not (symbolic_helper._is_none(weight) and symbolic_helper._is_none(eps)):
        raise UserError("format=onnx exports RMSNorm without weight and eps only")
    constant = torch.tensor(torch.finfo(torch.float32).eps)
    axes = g.op("Constant", value_t=torch.tensor([-1]))
    mean = g.op("ReduceMean", g.op("Mul", x, x), axes, keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=constant)))
    return g.op("Div", x, root)
