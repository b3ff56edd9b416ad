"""The command ``evaluate``, run in this process on the real config."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from iclevr_diffusion import evaluate
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.evaluation import two_sample
from iclevr_diffusion.evaluation.evaluation_report import frames_text

FEW = ("lists=[few.json]", "reference_frames=0")
SYNTHETIC = ("data=synthetic", "data.sequences=4", "data.image_size=16", "reference_frames=6")


@pytest.fixture
def few(run):
    """A list of two conditions, for ``FEW``."""
    Path("few.json").write_text('[["red cube"], ["cyan sphere", "gray cube"]]')


def output(folder="out"):
    return json.loads((Path(folder) / "evaluation.json").read_text())


def test_evaluation_leaves_figures_a_table_and_images(run, weights_folder):
    code, out, err = run(
        evaluate, f"weights={weights_folder}", "out=out", "seeds=3", "batch_size=20", *SYNTHETIC
    )
    assert code == 0, err
    figures = output()
    (setting,) = figures["settings"]
    assert (setting["sampler"], setting["steps"], setting["network_calls"]) == ("dpm_solver", 2, 2)
    for name, score in setting["lists"].items():
        assert score["conditions"] == 32
        accuracy = score["metrics"]["accuracy"]
        assert len(accuracy["per_seed"]) == 3
        assert accuracy["interval"][0] <= accuracy["mean"]
        assert len(score["by_step"]) == 2
        assert set(score["distances"]) == {"frechet", "kernel"}
        assert score["metrics"]["count_accuracy"]["mean"] >= 0
        assert len(score["factors"]["joint"]["per_seed"]) == 3
        assert score["shown_by_group"].keys() == {"color", "shape", "number"}
        with Image.open(f"out/grid_{name}.png") as image:
            assert image.width > 8 * 32
    assert figures["reference"] == {"source": "synthetic", "sequences": 4, "seed": 0, "frames": 6}
    for image in ("confusion", "accuracy_by_step", "strip"):
        assert Path(f"out/{image}.png").is_file()
    table = Path("out/evaluation.md").read_text()
    printed, _, factors = table.partition("\nFactors: ")
    assert printed in out
    assert "| colors right |" in factors
    assert "Factors" not in out  # it would be flooded
    assert "own evaluator" in figures["evaluator"]
    assert figures["evaluator"] in table


@pytest.mark.slow
def test_same_command_gives_the_same_figures(run, few, weights_folder):
    for folder in ("one", "two"):
        run(evaluate, f"weights={weights_folder}", f"out={folder}", "seeds=2", *FEW)
    one, two = (output(folder)["settings"][0]["lists"]["few"] for folder in ("one", "two"))
    for score in (one, two):
        del score["seconds_per_image"]
    assert one == two


@pytest.mark.slow
def test_several_settings_give_one_table_and_one_plot(run, weights_folder):
    arguments = ("sampler.steps=[1,3]", "guidance.scale=[1,2]", "lists=[test]", "seeds=1")
    code, _, err = run(evaluate, f"weights={weights_folder}", "out=out", *arguments)
    assert code == 0, err
    settings = output()["settings"]
    assert [setting["network_calls"] for setting in settings] == [1, 2, 3, 6]
    assert settings[0]["lists"]["test"]["metrics"]["accuracy"]["interval"] is None
    assert Path("out/accuracy_over_calls.png").is_file()
    assert Path("out/dpm_solver_3_w2/grid_test.png").is_file()


@pytest.mark.slow
def test_scales_alone_are_plotted_over_the_scale(run, few, weights_folder):
    arguments = ("guidance.scale=[0,1]", "sampler.steps=1", "seeds=1", *FEW)
    code, _, err = run(evaluate, f"weights={weights_folder}", "out=out", *arguments)
    assert code == 0, err
    assert [path.name for path in Path("out").glob("accuracy_over_*")] == [
        "accuracy_over_guidance.png"
    ]


@pytest.mark.slow
def test_lists_of_all_kinds_are_found(run, weights_folder):
    Path("mine.json").write_text('[["red cube"], ["cyan sphere", "gray cube"]]')
    lists = "lists=[mine.json,validation,crowded,numbers]"
    code, _, err = run(evaluate, f"weights={weights_folder}", "out=out", "seeds=1", lists)
    assert code == 0, err
    scores = output()["settings"][0]["lists"]
    assert {name: score["conditions"] for name, score in scores.items()} == {
        "mine": 2,
        "validation": 52,
        "crowded": 128,
        "numbers": 128,
    }
    assert set(scores["numbers"]["exact_by_number"]) == set("12345678")
    assert set(output()["rendered"]) == set("45678")
    assert set(scores["crowded"]["by_count"]) == {"4", "5"}
    assert output()["lists"]["mine"] == "the file mine.json"
    assert "count accuracy" in Path("out/evaluation.md").read_text()
    assert Path("out/grid_crowded_wrong.png").is_file()


def trained_on(weights_folder, folder, **changes):
    """The tiny model, as if trained with other settings."""
    model = dataclasses.replace(load_model(weights_folder), **changes)
    return save_model(model, folder / "changed" / "weights")


@pytest.mark.slow
def test_unseen_is_what_the_frames_of_the_training_do_not_show(run, weights_folder, tmp_path):
    data = {"source": "synthetic", "sequences": 650, "seed": 0}
    weights = trained_on(weights_folder, tmp_path, data=data)
    small = ("lists=[unseen]", "seeds=1", "reference_frames=0", "sampler.steps=1")
    code, _, err = run(evaluate, f"weights={weights}", "out=out", *small)
    assert code == 0, err
    count = output()["settings"][0]["lists"]["unseen"]["conditions"]
    assert 2024 - 650 <= count < 2024 - 500
    code, _, err = run(evaluate, f"weights={weights}", "out=two", "data=synthetic", *small)
    assert code == 2
    assert "needs the frames of the training, synthetic frames, sequences 650, seed 0" in err


def test_guidance_of_weights_that_never_dropped_labels_is_refused(run, weights_folder, tmp_path):
    sampling = {"steps": 2, "label_drop": 0.0}
    weights = trained_on(weights_folder, tmp_path, sampling=sampling)
    code, _, err = run(evaluate, f"weights={weights}", "guidance.scale=2")
    assert (code, err.count("\n")) == (2, 1), err
    assert "needs weights that were trained with dropped labels" in err


@pytest.mark.slow
def test_one_image_has_no_distance(run, weights_folder):
    Path("one.json").write_text('[["red cube"]]')
    arguments = ("lists=[one.json]", "seeds=1", *SYNTHETIC)
    code, out, err = run(evaluate, f"weights={weights_folder}", "out=out", *arguments)
    assert code == 0, err
    assert output()["settings"][0]["lists"]["one"]["distances"] == {}
    assert "| - | - |" in out


def test_the_courses_evaluator_scores_too(run, few, weights_folder):
    torch.manual_seed(0)
    net = resnet18(weights=None)
    net.fc = nn.Sequential(nn.Linear(512, 24), nn.Sigmoid())
    torch.save({"model": net.state_dict()}, "checkpoint.pth")
    arguments = ("evaluator.checkpoint=checkpoint.pth", "seeds=1", *FEW)
    code, out, err = run(evaluate, f"weights={weights_folder}", "out=out", *arguments)
    assert code == 0, err
    assert "ResNet18 (checkpoint.pth" in output()["evaluator"]
    assert output()["evaluator"] in out
    assert "count_accuracy" not in output()["settings"][0]["lists"]["few"]["metrics"]


def test_fidelity_is_in_the_figures_and_in_the_table(run, weights_folder, monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 2)
    settings = ("data=synthetic", "data.sequences=40", "data.image_size=16", "reference_frames=0")
    few = ("fidelity=true", "lists=[test]", "seeds=1", "out=out")
    code, out, err = run(evaluate, f"weights={weights_folder}", *settings, *few)
    assert code == 0, err
    fidelity = output()["settings"][0]["fidelity"]
    assert (fidelity["num_frames"], fidelity["crops"]) == (12, None)
    assert fidelity["images"]["auc"].keys() == {"value", "control"}
    assert "| 12 images |" in out
    assert Path("out/evaluation.md").read_text().partition("\nFactors: ")[0] in out


def test_text_of_a_weights_folder_cannot_control_the_terminal():
    assert frames_text({"source": "x\x1b[2J\n| a |", "n": 1}) == "x�[2J | a | frames, n 1"
