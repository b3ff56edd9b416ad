"""The noise that is added to the last estimate of x_0."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers import SMALL, folders
from iclevr_diffusion import train
from iclevr_diffusion.diffusion.final_noise import add_noise, measure_covariance, noise_factor
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import image_generators

COVARIANCE = [[0.04, 0.02, 0.01], [0.02, 0.05, 0.03], [0.01, 0.03, 0.06]]
SAMPLING = {"steps": 3, "final_noise": True, "final_covariance": COVARIANCE}


def covariance_of(images):
    values = images.transpose(0, 1).flatten(1).double()
    return values @ values.T / values.shape[1]


def model(sampling):
    torch.manual_seed(0)
    net = ConditionalUNet(
        16, "embedding", [8], [False], mid_attention=False, layers_per_block=1, norm_groups=4
    )
    return Model(net.eval(), NoiseSchedule(timesteps=20), find_prediction("epsilon"), sampling)


def images(pipeline, count=2):
    labels = pipeline.vocabulary.encode(["red cube"]).expand(count, -1)
    return pipeline(labels, image_generators(0, range(count), "sample"))


def test_noise_has_the_covariance():
    generators = image_generators(0, range(4), "test")
    noise = add_noise(torch.zeros(4, 3, 64, 64), noise_factor(COVARIANCE), generators)
    torch.testing.assert_close(
        covariance_of(noise), torch.tensor(COVARIANCE).double(), rtol=0, atol=2e-3
    )
    assert (noise[..., 1:] * noise[..., :-1]).mean().abs() < 1e-3  # pixels are independent


@pytest.mark.parametrize(
    "covariance",
    [
        [],
        [[1.0]],
        [[1, 0], [0, 1]],
        [[1, 0, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0], [0, "1", 0]],
        [[1, 0.5, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 2, 0], [2, 1, 0], [0, 0, 1]],
        [[float("nan"), 0, 0], [0, 1, 0], [0, 0, 1]],
        ["abc", "abc", "abc"],
    ],
)
def test_what_is_no_covariance_is_refused(covariance):
    with pytest.raises(ValueError, match="final_covariance"):
        noise_factor(covariance)


class Clean:
    """Estimates the clean images, whatever x_t."""

    def __init__(self, x0):
        self.x0, self.schedule, self.seen = x0, NoiseSchedule(timesteps=20), []

    def estimate(self, timestep, x_t, labels, positions):
        self.seen.append((timestep, len(x_t), positions is not None))
        return self.x0.expand_as(x_t)


def test_the_covariance_is_that_of_the_error_without_rounding():
    clean = torch.zeros(3, 32, 32)
    factor = 0.05 * noise_factor(COVARIANCE)  # about 1.3 of 255 steps
    grainy = add_noise(clean.expand(40, -1, -1, -1), factor, image_generators(0, range(40), "test"))
    frames = ((grainy + 1) * 127.5).round().to(torch.uint8)
    denoiser = Clean(clean)
    measured = measure_covariance(denoiser, 3, frames, torch.zeros(40, 24), None)
    expected = 0.05**2 * torch.tensor(COVARIANCE)
    torch.testing.assert_close(torch.tensor(measured), expected, rtol=0.05, atol=2e-6)
    assert denoiser.seen == [(3, 32, False), (3, 8, False)]


def test_a_perfect_estimate_needs_no_noise():
    denoiser = Clean(torch.full((3, 8, 8), 128 / 127.5 - 1))
    frames = torch.full((4, 3, 8, 8), 128, dtype=torch.uint8)
    assert measure_covariance(denoiser, 0, frames, torch.zeros(4, 24), None) == [[0.0] * 3] * 3


def test_images_get_the_noise_unless_it_is_switched_off():
    with_noise, without = (model(SAMPLING).pipeline(final_noise=value) for value in (None, False))
    plain = model({"steps": 3}).pipeline()
    assert torch.equal(images(without), images(plain))
    difference = images(with_noise, 64) - images(without, 64)
    inside = images(with_noise, 64).abs() < 1
    assert 0.1 < difference[inside].std() < 0.3
    assert "final noise" in str(with_noise)
    assert str(without) == str(plain)


def test_another_last_timestep_has_another_error_so_nothing_is_added():
    other = model(SAMPLING).pipeline(steps=4)
    assert torch.equal(images(other), images(model({"steps": 4}).pipeline()))
    stored = model(SAMPLING).with_sampling({"steps": 4})
    assert torch.equal(images(stored.pipeline()), images(other))


def test_weights_with_another_last_timestep_can_be_loaded(tmp_path):
    stored = model(SAMPLING).with_sampling({"steps": 4})
    loaded = load_model(save_model(stored, tmp_path / "weights"))
    assert torch.equal(images(loaded.pipeline()), images(stored.pipeline()))


def test_weights_keep_it(tmp_path):
    saved = save_model(model(SAMPLING), tmp_path / "weights")
    loaded = load_model(saved)
    assert torch.equal(images(loaded.pipeline()), images(model(SAMPLING).pipeline()))


def test_weights_with_an_invalid_covariance_are_refused(tmp_path):
    saved = save_model(model({"steps": 3}), tmp_path / "weights")
    settings = {"steps": 3, "final_noise": True, "final_covariance": [[1, 2], [3, 4]]}
    (saved / "sampling.json").write_text(json.dumps(settings))
    with pytest.raises((UserError, ValueError), match="final_covariance must be"):
        load_model(saved).pipeline()


def test_a_training_measures_it(run):
    code, _, err = run(
        train, *SMALL, "name=run", "trainer.max_epochs=1", "sampler.final_noise=true"
    )
    assert (err, code) == ("", 0)
    (folder,) = folders("run")
    trained = load_model(folder)
    assert trained.sampling["final_noise"]
    assert trained.pipeline().sampler.noise_factor.diag().min() > 0
    covariance = trained.sampling["final_covariance"]

    # Killed after its last step, it saves the same results when it is resumed.
    Path(folder, "summary.json").unlink()
    shutil.rmtree(Path(folder, "weights"))
    resumed = (*SMALL, "name=run", "trainer.max_epochs=1", "sampler.final_noise=true")
    code, _, err = run(train, *resumed, "resume=true")
    assert (err, code) == ("", 0)
    assert load_model(folder).sampling["final_covariance"] == covariance
