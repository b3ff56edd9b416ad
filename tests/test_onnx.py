"""The ONNX graph samples the images of the pipeline, with what is in ``model.json`` alone."""

import dataclasses
import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from iclevr_diffusion import export
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.onnx_export import client
from iclevr_diffusion.diffusion.onnx_graph import OPSET, save_onnx
from iclevr_diffusion.diffusion.onnx_operators import register
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import FlowSchedule, NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import image_generators, randn
from iclevr_diffusion.utils.typed_json import write_dataclass

try:
    import onnx
    import onnxruntime
except ImportError:
    onnxruntime = None

needs_onnx = pytest.mark.skipif(onnxruntime is None, reason="needs the extra onnx")


def sampled(folder, x, final_noise, labels, positions):
    """Sample as a client would: numpy and onnxruntime, DPM-Solver++ of order 1 or 2."""
    client = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    alphas, sigmas = [*client["alphas"], 1.0], [*client["sigmas"], 0.0]
    before, ratio = None, None
    for number, timestep in enumerate(client["timesteps"]):
        given = {"x_t": x, "timestep": np.array([timestep]), "labels": labels}
        if client["positions"]:
            given["positions"] = positions
        (x0,) = session.run(None, given)
        alpha, sigma = alphas[number], sigmas[number]
        following, noise = alphas[number + 1], sigmas[number + 1]
        if noise == 0:
            factor = client["final_noise"]
            return x0 if factor is None else x0 + np.einsum("ij,bjhw->bihw", factor, final_noise)
        step = np.log(following / noise) - np.log(alpha / sigma)
        data = x0
        if client["order"] == 2 and before is not None:
            data = x0 + step / ratio / 2 * (x0 - before)
        x = (noise / sigma * x - following * np.expm1(-step) * data).astype(np.float32)
        before, ratio = x0, step
    raise AssertionError("no timesteps")


def compare(folder, model, count=3):
    """The largest difference to the pipeline's images, in 0..255."""
    labels = model.vocabulary.encode_all([model.vocabulary.names[i : i + 3] for i in range(count)])
    pipeline = model.pipeline()
    generators = image_generators(0, range(count), "sample")
    expected = pipeline(labels, generators)
    generators = image_generators(0, range(count), "sample")
    positions = pipeline.sample_positions(labels, generators)
    noise, final_noise = (randn(model.image_shape, generators).numpy() for _ in range(2))
    placed = None if positions is None else positions.numpy()
    got = sampled(folder, noise, final_noise, labels.numpy(), placed)
    return np.abs(got.clip(-1, 1) - expected.numpy()).max() * 127.5


def tiny(kind):
    torch.manual_seed(0)
    uvit = {"channels": [8], "blocks": [1], "width": 32, "depth": 1, "head_dim": 16}
    if kind == "flow":
        net, schedule, prediction = UViT(16, **uvit), FlowSchedule(20), "velocity"
    elif kind == "headings":
        net = DetailNet(16, [8, 8], [1, 1], timesteps=20, positions=True, headings=True)
        net.layout.turning[:8] = True
        schedule, prediction = NoiseSchedule(timesteps=20), "sample"
        net.noise_to_signal.copy_(schedule.noise_to_signal())
    else:
        detail = {"channels": [8, 8], "blocks": [1, 1], "timesteps": 20}
        coarse = {**uvit, "positions": True}
        if kind == "experts with headings":
            coarse = {**detail, "network": "DetailNet", "positions": True, "headings": True}
        net = NoiseExperts(coarse, detail, 16, switch=0.5)
        schedule, prediction = NoiseSchedule(timesteps=20), "sample"
        for expert in net.noise_experts():
            if isinstance(expert, DetailNet):
                expert.noise_to_signal.copy_(schedule.noise_to_signal())
                expert.mean_frame.uniform_(-0.5, 0.5)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    sampling = {"steps": 5, "guidance_scale": 2.0, "guidance_min_noise": 0.3, "label_drop": 0.1}
    sampling |= {
        "guidance_rescale": 0.7,
        "final_noise": True,
        "final_covariance": [[0.02, 0.01, 0], [0.01, 0.02, 0], [0, 0, 0]],
    }
    return Model(net.eval(), schedule, find_prediction(prediction), sampling)


@needs_onnx
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("flow", "float32"),
        pytest.param("headings", "float32", marks=pytest.mark.slow),
        pytest.param("flow", "float16", marks=pytest.mark.slow),
        pytest.param("experts", "float32", marks=pytest.mark.slow),
        pytest.param("experts", "float16", marks=pytest.mark.slow),
        pytest.param("experts with headings", "float32", marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_samples_the_images_of_the_pipeline(run, tmp_path, kind, dtype):
    weights = save_model(tiny(kind), tmp_path / "weights", getattr(torch, dtype))
    code, out, err = run(export, f"weights={weights}", "format=onnx", f"dtype={dtype}", "out=onnx")
    assert (err, code) == ("", 0)
    assert out.split() == ["onnx/model.onnx", "onnx/model.json"]
    assert compare(tmp_path / "onnx", load_model(weights)) < 1


@needs_onnx
def test_a_flat_estimate_is_rescaled_without_a_division_by_zero(tmp_path):
    model = tiny("flow")
    model = dataclasses.replace(model, prediction=find_prediction("sample"))
    for weight in model.net.parameters():
        weight.data.zero_()
    save_onnx(model, tmp_path / "model.onnx")
    write_dataclass(tmp_path / "model.json", client(model))
    assert compare(tmp_path, model) < 1


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_packaged_weights_sample_alike(run, tmp_path, dtype):
    code, _, err = run(export, "format=onnx", f"dtype={dtype}", "out=onnx")
    assert (err, code) == ("", 0)
    model = load_model("pretrained")
    assert compare(tmp_path / "onnx", model) < 1
    size = (tmp_path / "onnx" / "model.onnx").stat().st_size
    parameters = sum(parameter.numel() for parameter in model.net.parameters())
    assert size < parameters * (2 if dtype == "float16" else 4) * 1.1


class Normalizes(torch.nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def forward(self, x):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], **self.settings)


@needs_onnx
@pytest.mark.parametrize("settings", [{}, {"weight": torch.full((4,), 2.0)}, {"eps": 0.1}])
def test_a_norm_that_the_graph_cannot_express_is_refused(tmp_path, settings):
    register(OPSET)
    net, example = Normalizes(**settings), torch.ones(2, 4)
    with pytest.raises(UserError, match="without weight and eps") if settings else nullcontext():
        torch.onnx.export(net, (example,), tmp_path / "x", opset_version=OPSET, dynamo=False)


@needs_onnx
def test_without_a_dtype_weights_are_stored_in_that_of_their_file(run, tmp_path):
    for dtype in ("float32", "float16"):
        save_model(tiny("flow"), tmp_path / dtype, getattr(torch, dtype))
        assert run(export, f"weights={dtype}", "format=onnx", f"out=onnx_{dtype}")[0] == 0
        graph = onnx.load(tmp_path / f"onnx_{dtype}" / "model.onnx").graph
        stored = {tensor.data_type for tensor in graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in stored) == (dtype == "float16")


def test_without_onnx_a_line_says_what_to_install(run, weights_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run(export, f"weights={weights_folder}", "format=onnx", "out=onnx")
    assert code == 2
    assert err == ("error: format=onnx needs the package onnx: pip install '.[onnx]'\n")


def test_a_sampler_that_clients_do_not_have_is_replaced_with_a_warning(caplog):
    model = tiny("flow")
    model.sampling.update(sampler="ddim")
    assert client(model).order == 1
    assert not caplog.text
    model.sampling.update(sampler="unipc")
    assert client(model).order == 2
    assert "unipc, the sampler of the weights, cannot be exported" in caplog.text
