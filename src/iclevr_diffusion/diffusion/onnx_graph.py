"""The graph of one denoising step in ONNX.

The graph maps x_t, the timestep, labels and positions to the guided estimate of x_0. It is traced
(torch.onnx, opset 18), with one graph per expert and an ``If`` that chooses between them. Guidance
appends unconditional inputs to the batch in guided steps only: unguided steps take one call.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from iclevr_diffusion.diffusion import onnx_operators
from iclevr_diffusion.diffusion.guidance import FLAT
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.protocol import mean_frame
from iclevr_diffusion.utils.files import atomic_path

OPSET = 18
EXAMPLE_BATCH = 3  # for tracing; the graph accepts any batch size


def save_onnx(model: Model, path: Path, half: bool = False) -> None:
    """Write the graph of one denoising step, with the model's default guidance.

    Inputs: ``x_t``, float32, (B, 3, H, W), variance-preserving; ``timestep``, int64, (1,);
    ``labels``, float32, multi-hot, (B, L); ``positions``, float32, (B, L, 2 or 4), if the network
    takes positions. Output: ``x0``, float32, (B, 3, H, W), in [-1, 1].

    Args:
        model: The model, on the CPU.
        path: The file to write.
        half: Whether to store the weights in float16. Computation stays in float32, since not all
            runtimes support float16.
    """
    import onnx

    pipeline = model.pipeline()
    experts: list[nn.Module] = [model.net]
    if isinstance(model.net, NoiseExperts):
        experts = [model.net.detail, model.net.coarse]
    with TemporaryDirectory() as folder:
        graphs = [
            _trace(UnguidedStep(expert, model), model, Path(folder, f"{number}.onnx"))
            for number, expert in enumerate(experts)
        ]
    graph = _assemble(graphs, model, pipeline)
    if half:
        _round_to_half(graph)
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    whole.ir_version = graphs[0].ir_version
    whole = _simplify(whole)
    if half:
        _store_in_half(whole.graph)
    onnx.checker.check_model(whole)
    with atomic_path(path) as partial:
        partial.write_bytes(whole.SerializeToString())


class UnguidedStep(nn.Module):
    """Estimates x_0 from variance-preserving x_t, without guidance."""

    def __init__(self, net: nn.Module, model: Model) -> None:
        super().__init__()
        self.net, self.schedule, self.prediction = net, model.schedule, model.prediction

    def forward(
        self, x_t: Tensor, timestep: Tensor, labels: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Return x_0, (B, 3, H, W), not clamped; ``timestep`` is (1,)."""
        timesteps = timestep.expand(x_t.shape[0])
        alpha, sigma = self.schedule.alpha(timesteps, x_t), self.schedule.sigma(timesteps, x_t)
        if not self.schedule.variance_preserving:
            x_t = x_t * (alpha.square() + sigma.square()).sqrt()
        output = self.net(x_t, timesteps, labels, positions)
        return self.prediction.to_x0(output, x_t, alpha, sigma)


def _trace(estimate: UnguidedStep, model: Model, path: Path) -> Any:
    """Return the ONNX model of an estimate; batched inputs have names that end with ``_in``."""
    import onnx

    labels = torch.zeros(EXAMPLE_BATCH, len(model.vocabulary))
    inputs = {
        "x_t_in": torch.zeros(EXAMPLE_BATCH, *model.image_shape),
        "timestep": torch.tensor([model.schedule.timesteps - 1]),
        "labels_in": labels,
    }
    prior = model.pipeline().position_prior
    if prior is not None:
        inputs["positions_in"] = torch.zeros(*labels.shape, prior.dimensions)
    batched = [name for name in (*inputs, "x0") if name != "timestep"]
    onnx_operators.register(OPSET)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # from the tracer; tests compare the result
        torch.onnx.export(
            estimate.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["x0"],
            dynamic_axes={name: {0: "batch"} for name in batched},
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load(path)


def _assemble(graphs: Sequence[Any], model: Model, pipeline: DenoisingPipeline) -> Any:
    """Join the experts' graphs, the choice among them, and the guidance into one graph."""
    from onnx import TensorProto, helper, numpy_helper

    prior = pipeline.position_prior
    names = ["x_t", "labels", *(["positions"] if prior is not None else [])]
    tables: dict[str, Any] = {
        "scales": torch.tensor(pipeline.denoiser.scales).numpy(),
        "one": torch.ones(1).numpy(),
        "zero": torch.zeros(1).numpy(),
        "start": torch.zeros(1, dtype=torch.int64).numpy(),
        "low": torch.tensor(-1.0).numpy(),
        "high": torch.tensor(1.0).numpy(),
    }
    rescale = pipeline.denoiser.guidance.rescale
    if rescale:
        tables["rescale"] = torch.tensor(rescale).numpy()
        tables["flat"] = torch.tensor(FLAT).numpy()
        tables["axes"] = torch.tensor([1, 2, 3]).numpy()
        tables["mean_frame"] = mean_frame(model.net).float().numpy()
    initializers = [numpy_helper.from_array(value, name) for name, value in tables.items()]
    estimate, weights = _choose_expert(graphs, model)
    nodes = [*_append_unconditional(names), *estimate, *_guide(bool(rescale))]
    count, size = len(model.vocabulary), model.image_shape[1]
    shapes = {
        "x_t": ["batch", 3, size, size],
        "labels": ["batch", count],
        "positions": ["batch", count, prior.dimensions if prior else 0],
    }
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shapes[n]) for n in names]
    inputs.insert(1, helper.make_tensor_value_info("timestep", TensorProto.INT64, [1]))
    output = helper.make_tensor_value_info("x0", TensorProto.FLOAT, shapes["x_t"])
    return helper.make_graph(nodes, "denoising_step", inputs, [output], initializers + weights)


def _append_unconditional(names: Sequence[str]) -> list[Any]:
    """Return nodes that append a row without labels for each image, in guided steps."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Shape", ["labels"], ["count"], start=0, end=1),
        helper.make_node("Gather", ["scales", "timestep"], ["scale"]),
        helper.make_node("Equal", ["scale", "one"], ["unguided"]),
        helper.make_node("Not", ["unguided"], ["guided"]),
        helper.make_node("Cast", ["guided"], ["guided_count"], to=TensorProto.INT64),
        # Number of unconditional rows: one per image, or none.
        helper.make_node("Mul", ["count", "guided_count"], ["extra"]),
        helper.make_node("Add", ["count", "extra"], ["all"]),
    ]
    for name in names:
        rows = f"{name}_rows"
        nodes.append(helper.make_node("Slice", [name, "start", "extra", "start"], [rows]))
        if name != "x_t":
            nodes.append(helper.make_node("Mul", [rows, "zero"], [f"{name}_zeros"]))
            rows = f"{name}_zeros"
        nodes.append(helper.make_node("Concat", [name, rows], [f"{name}_in"], axis=0))
    return nodes


def _choose_expert(graphs: Sequence[Any], model: Model) -> tuple[list[Any], list[Any]]:
    """Return nodes that estimate x_0 with the expert for the timestep, and their initializers."""
    from onnx import TensorProto, compose, helper, numpy_helper

    branches, initializers = [], []
    for number, traced in enumerate(graphs):
        prefix = f"expert{number}_"
        graph = compose.add_prefix(traced, prefix, rename_inputs=False).graph
        initializers += graph.initializer
        output = helper.make_tensor_value_info(f"{prefix}x0", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(graph.node, prefix, [], [output]))
    if len(branches) == 1:
        only = helper.make_node("Identity", ["expert0_x0"], ["estimate"])
        return [*branches[0].node, only], initializers
    is_low = model.net.detail.noise_to_signal < model.net.switch  # type: ignore[union-attr, operator]
    initializers.append(numpy_helper.from_array(is_low.cpu().numpy(), "is_low"))
    detail, coarse = branches
    nodes = [
        helper.make_node("Gather", ["is_low", "timestep"], ["use_detail"]),
        helper.make_node(
            "If", ["use_detail"], ["estimate"], then_branch=detail, else_branch=coarse
        ),
    ]
    return nodes, initializers


def _guide(rescale: bool) -> list[Any]:
    """Return nodes that extrapolate from the unconditional to the conditional estimate.

    Args:
        rescale: Whether to rescale the result, as :meth:`.guidance.Guidance.rescaled`.
    """
    from onnx import helper

    nodes = [
        helper.make_node("Slice", ["estimate", "start", "count", "start"], ["conditional"]),
        # In an unguided step, these are the conditional rows again, and the scale is 1.
        helper.make_node("Slice", ["estimate", "extra", "all", "start"], ["unconditional"]),
        helper.make_node("Sub", ["conditional", "unconditional"], ["difference"]),
        helper.make_node("Mul", ["difference", "scale"], ["scaled"]),
        helper.make_node("Add", ["unconditional", "scaled"], ["extrapolated"]),
    ]
    result = "extrapolated"
    if rescale:
        for name in ("conditional", "extrapolated"):
            nodes.append(helper.make_node("Sub", [name, "mean_frame"], [f"{name}_deviation"]))
            nodes += _standard_deviation(f"{name}_deviation", f"{name}_std")
        nodes += [
            helper.make_node("Max", ["extrapolated_std", "flat"], ["divisor"]),
            helper.make_node("Div", ["conditional_std", "divisor"], ["ratio"]),
            helper.make_node("Sub", ["ratio", "one"], ["excess"]),
            helper.make_node("Mul", ["excess", "rescale"], ["factor"]),
            helper.make_node("Mul", ["extrapolated_deviation", "factor"], ["correction"]),
            helper.make_node("Add", ["extrapolated", "correction"], ["rescaled"]),
        ]
        result = "rescaled"
    return [*nodes, helper.make_node("Clip", [result, "low", "high"], ["x0"])]


def _standard_deviation(name: str, result: str) -> list[Any]:
    """Return nodes that compute the standard deviation of each image, (B, 1, 1, 1)."""
    from onnx import helper

    return [
        helper.make_node("ReduceMean", [name, "axes"], [f"{name}_mean"]),
        helper.make_node("Sub", [name, f"{name}_mean"], [f"{name}_centered"]),
        helper.make_node("Mul", [f"{name}_centered"] * 2, [f"{name}_squares"]),
        helper.make_node("ReduceMean", [f"{name}_squares", "axes"], [f"{name}_variance"]),
        helper.make_node("Sqrt", [f"{name}_variance"], [result]),
    ]


def _round_to_half(graph: Any) -> None:
    """Round matrices and kernels to float16; they are still stored in float32."""
    from onnx import numpy_helper

    for tensor in _matrices(graph):
        rounded = numpy_helper.to_array(tensor).astype("float16").astype("float32")
        tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def _simplify(whole: Any) -> Any:
    """Fold constants and drop what has no effect; all operators are still those of ONNX."""
    import onnx
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with TemporaryDirectory() as folder:
        path = Path(folder, "simplified.onnx")
        options.optimized_model_filepath = str(path)
        content = whole.SerializeToString()
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def _store_in_half(graph: Any) -> None:
    """Store in float16, with a cast to float32, what was rounded to it."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in _matrices(graph):
        name, values = tensor.name, numpy_helper.to_array(tensor)
        half = values.astype("float16")
        if (half == values).all():
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _matrices(graph: Any) -> list[Any]:
    """Return the initializers in float32 with more than one axis."""
    from onnx import TensorProto

    tensors = graph.initializer
    return [each for each in tensors if each.data_type == TensorProto.FLOAT and len(each.dims) > 1]
