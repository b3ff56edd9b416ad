"""Which weights a path stands for, and what is read with them."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from helpers import SMALL, folders
from iclevr_diffusion import train
from iclevr_diffusion.cli.run_dir import new_or_latest
from iclevr_diffusion.data.labels import Vocabulary
from iclevr_diffusion.diffusion.io import load_model, save_model, stored_dtype
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.run_summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.diffusion.schedule import FlowSchedule, NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.diffusion.weights_path import find_weights, run_of
from iclevr_diffusion.models.known_networks import register_network
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.typed_json import write_dataclass

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def make_run(run, started=None, **steps):
    """Make a run whose checkpoints and published weights are of the given steps."""
    (run / "checkpoints").mkdir(parents=True)
    for name, step in steps.items():
        if name == "weights":
            save_model(tiny_model(), run / "weights")
            weights, machine = PublishedWeights(scores={}, step=step), Machine("cpu")
            summary = Summary("run", 0, "synthetic", step, 8, 1, {}, "ours", machine, weights)
            write_dataclass(run / "summary.json", summary)
        else:
            content = {"model": {}, "callbacks": {}, "state_dict": {}, "progress": {"steps": step}}
            torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    if started is not None:
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (started, started))
    return run


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ({"last": 2}, LAST),
        ({"last": 4, "best": 2}, BEST),
        ({"last": 4, "best": 2, "weights": 2}, "weights"),
        ({"last": 8, "best": 6, "weights": 2}, BEST),  # resumed, better, and stopped
    ],
)
def test_a_run_refers_to_its_best_weights(tmp_path, steps, found):
    run = make_run(tmp_path / "run", **steps)
    assert find_weights(run) == find_weights(tmp_path) == run / found


def test_a_copied_run_refers_to_its_published_weights(tmp_path):
    run = make_run(tmp_path / "run", last=4, best=2, weights=2)
    os.utime(run / BEST)  # copied last
    assert find_weights(run) == run / "weights"


@pytest.mark.parametrize(("folder", "weights"), [("weights", "."), ("checkpoints", "last.ckpt")])
def test_weights_named_within_a_run_know_their_run(tmp_path, monkeypatch, folder, weights):
    run = make_run(tmp_path / "run", last=2, weights=2)
    monkeypatch.chdir(run / folder)
    assert run_of(find_weights(Path(weights))) == run


def test_of_several_runs_the_last_one_started_counts_as_for_resume(tmp_path):
    make_run(tmp_path / "2026-01-01", started=3, last=1)
    newest = make_run(tmp_path / "job_1000", started=9, last=1)
    make_run(tmp_path / "job_999", started=5, last=1)
    assert find_weights(tmp_path) == newest / LAST
    assert new_or_latest(str(tmp_path), True) == str(newest)


@pytest.mark.slow
def test_a_checkpoint_samples_with_the_settings_of_its_run(run):
    settings = ("sampler.name=ddim", "sampler.steps=7", "trainer.max_steps=1")
    code, _, err = run(train, "experiment=cosine_eps", *SMALL, *settings)
    assert code == 0, err
    (folder,) = folders("cosine_eps")
    for path in (folder / "weights", folder / LAST):
        assert str(load_model(path).pipeline()) == "ddim 7 steps, guidance 1"
        with pytest.raises(ValueError, match="trained with dropped labels"):
            load_model(path).pipeline(guidance_scale=2.0)


def tiny_model(schedule=None, prediction="sample", **settings):
    torch.manual_seed(0)
    net = UViT(16, [8], [1], width=32, depth=1, head_dim=16, **settings).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    schedule = schedule or NoiseSchedule(timesteps=20)
    return Model(net, schedule, find_prediction(prediction), {"steps": 3})


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "velocity"])
@pytest.mark.parametrize("schedule", [NoiseSchedule("sigmoid", 20), FlowSchedule(20)], ids=str)
def test_weights_come_back_with_their_schedule_and_prediction(tmp_path, schedule, prediction):
    model = tiny_model(schedule, prediction)
    loaded = load_model(save_model(model, tmp_path / "weights"))
    assert str(loaded.schedule) == str(schedule)
    assert loaded.prediction is model.prediction
    one, other = (m.pipeline().generate(["red cube"], seed=1) for m in (model, loaded))
    assert torch.equal(one, other)


def test_weights_of_other_labels_carry_their_names(tmp_path):
    vocabulary = Vocabulary([f"{color} {shape}" for shape in "abcde" for color in ("x", "y", "z")])
    model = tiny_model(num_labels=15, num_colors=3, positions=True)
    model = dataclasses.replace(model, vocabulary=vocabulary)
    folder = save_model(model, tmp_path / "weights")
    assert json.loads((folder / "labels.json").read_text()) == list(vocabulary.names)
    loaded = load_model(folder)
    assert loaded.vocabulary == vocabulary
    images = loaded.pipeline().generate(["y c", "z e"], count=2)
    assert images.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match="unknown label 'red cube'"):
        loaded.pipeline().generate(["red cube"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_dtype_of_stored_weights_is_known(tmp_path, dtype):
    assert stored_dtype(save_model(tiny_model(), tmp_path / "weights", dtype)) == dtype


def test_weights_of_as_many_labels_as_they_name_are_loaded(tmp_path):
    folder = save_model(tiny_model(), tmp_path / "weights")
    (folder / "labels.json").write_text('["one", "two"]')
    with pytest.raises(UserError, match="the network has 24 labels, but 2 are named"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "class_name"),
    [("unet/config.json", "MyNet"), ("scheduler/scheduler_config.json", "os.system")],
)
def test_classes_are_looked_up_and_never_imported(tmp_path, file, class_name):
    folder = save_model(tiny_model(FlowSchedule(20), "velocity"), tmp_path / "weights")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {"_class_name": class_name}))
    with pytest.raises(UserError, match=rf"'{class_name}' is unknown.*plugins=.*import it"):
        load_model(folder)


def test_a_registered_network_is_saved_and_loaded(tmp_path):
    @register_network
    class Gray(ModelMixin, ConfigMixin):
        takes_positions = False

        @register_to_config
        def __init__(self, image_size: int = 16, num_labels: int = 24) -> None:
            super().__init__()
            self.num_labels = num_labels
            self.shade = torch.nn.Parameter(torch.tensor(0.25))

        def forward(self, x_t, timesteps, labels, positions=None):
            return self.shade.expand_as(x_t)

    model = Model(Gray(), NoiseSchedule(timesteps=20), find_prediction("sample"), {})
    loaded = load_model(save_model(model, tmp_path / "weights"))
    assert type(loaded.net) is Gray
    images = loaded.pipeline("ddim", 2).generate(["red cube"])
    assert torch.allclose(images, torch.full_like(images, 0.25))
