"""The weights that come with the package."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iclevr_diffusion import evaluate, sample
from iclevr_diffusion.data.conditions import packaged_conditions
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.diffusion.weights_path import PRETRAINED_FOLDER, find_weights
from iclevr_diffusion.evaluation.classifier import load_evaluator
from iclevr_diffusion.evaluation.score import score_list
from iclevr_diffusion.utils.rng import image_generators


def test_they_are_small_and_sample_in_few_calls():
    size = sum(path.stat().st_size for path in PRETRAINED_FOLDER.rglob("*") if path.is_file())
    assert size < 20e6
    model = load_model("pretrained")
    assert isinstance(model, Model)
    assert sum(parameter.numel() for parameter in model.net.parameters()) <= 10e6
    assert model.pipeline().network_calls(torch.ones(1, 24)) <= 12


@pytest.mark.parametrize("count", [3, pytest.param(32, marks=pytest.mark.slow)])
def test_they_generate_the_requested_labels(count):
    conditions = packaged_conditions("test")[:count]
    scores = score_list(load_model("pretrained").pipeline(), load_evaluator(None), conditions, 1)
    assert scores.per_seed[0]["accuracy"] > 0.9
    assert scores.per_seed[0]["exact_match"] > 0.8


def test_they_generate_the_same_in_float16():
    draw = load_model("pretrained").pipeline(steps=2)
    labels = ICLEVR_LABELS.encode_all([["red cube", "blue sphere"]])
    exact = draw(labels, image_generators(0, [0], "test"))
    with torch.autocast("cpu", torch.float16):
        half = draw(labels, image_generators(0, [0], "test"))
    assert (half - exact).abs().mean() < 0.01


def test_sample_uses_them_by_default(run):
    code, out, err = run(sample, "labels='red cube, blue sphere'", "n=1", "out=out")
    assert code == 0, err
    assert "red cube, blue sphere: 1 image, " in out
    assert Path("out/grid.png").is_file()
    assert str(load_model("pretrained").pipeline()) in out


def test_sample_places_the_objects_at_given_positions(run):
    words = ("labels='red cube, blue sphere'", "positions=[[-.5,0],[.4,.25]]", "n=2")
    code, out, err = run(sample, *words, "out=out")
    assert code == 0, err
    assert "positions as given" in out
    with Image.open("out/grid.png") as image:
        pixels = np.asarray(image).astype(float)[2:130:2, 2:130:2]  # twice as large
    for channel, (x, y) in ((0, (-0.5, 0)), (2, (0.4, 0.25))):
        others = pixels[..., [c for c in range(3) if c != channel]].max(2)
        rows, columns = (pixels[..., channel] - others > 20).nonzero()
        assert np.median(columns) == pytest.approx((x + 1) * 32, abs=3)
        assert np.median(rows) == pytest.approx((y + 1) * 32, abs=3)


def test_evaluate_measures_them_unless_told_otherwise_and_names_the_layout(run):
    Path("few.json").write_text('[["red cube"], ["cyan sphere", "gray cube"]]')
    arguments = ("seeds=1", "lists=[few.json]", "sampler.steps=1", "guidance.scale=1")
    code, out, err = run(evaluate, "out=out", *arguments, "layout=data")
    assert code == 0, err
    assert "Weights: pretrained" in out
    assert str(PRETRAINED_FOLDER.parent) not in out
    (setting,) = json.loads(Path("out/evaluation.json").read_text())["settings"]
    assert setting["layout"] == "data"
    assert out.count("| calls | layout |") == 2
    assert out.count("| 1 | data |") == 2


def test_a_folder_of_that_name_has_to_be_named_by_its_path(weights_folder, tmp_path, monkeypatch):
    save_model(load_model(weights_folder), tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    assert find_weights(Path("pretrained")) == PRETRAINED_FOLDER
    assert find_weights(tmp_path / "pretrained") == tmp_path / "pretrained"
