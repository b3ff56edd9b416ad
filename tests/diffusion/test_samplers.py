import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.guiders.guider_utils import rescale_noise_cfg

from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.iclevr_pipeline import Float32IO
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.prediction import PREDICTIONS, find_prediction
from iclevr_diffusion.diffusion.samplers import (
    SAMPLERS,
    SPACINGS,
    Sampler,
    karras_timesteps,
    sample,
    trailing_timesteps,
)
from iclevr_diffusion.diffusion.schedule import FlowSchedule, NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.protocol import mean_frame
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.utils.rng import image_generators

SHAPE = (3, 8, 8)


class Net:
    """A network of a few lines that takes no positions."""

    num_labels, takes_positions = 24, False

    def __init__(self, function):
        self.function = function

    def __call__(self, x_t, timesteps, labels, positions=None):
        return self.function(x_t, timesteps, labels)


class PerfectNet(Net):
    """Knows the images, and puts out what a perfectly trained network would."""

    def __init__(self, x0, schedule, prediction):
        self.x0, self.schedule, self.prediction = x0, schedule, prediction
        self.calls = []

    def __call__(self, x_t, timesteps, labels, positions=None):
        self.calls.append((len(x_t), int(timesteps[0])))
        alpha, sigma = self.schedule.alpha(timesteps, x_t), self.schedule.sigma(timesteps, x_t)
        noise = (x_t - alpha * self.x0) / sigma
        return self.prediction.target(self.x0, noise, alpha, sigma)


class LabelNet(Net):
    """Predicts an image whose every pixel is the sum of its labels, whatever x_t."""

    def __init__(self):
        self.batches = []

    def __call__(self, x_t, timesteps, labels, positions=None):
        self.batches.append(len(x_t))
        return labels.sum(1).view(-1, 1, 1, 1).expand_as(x_t)


def images(count=3):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9


@pytest.mark.parametrize(
    ("schedule", "prediction_name"),
    [
        (schedule, name)
        for schedule in (
            NoiseSchedule("linear"),
            NoiseSchedule("squaredcos_cap_v2"),
            NoiseSchedule("sigmoid"),
            FlowSchedule(),
        )
        for name in PREDICTIONS
        if schedule.variance_preserving or not find_prediction(name).variance_preserving
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_perfect_denoiser_recovers_the_images(sampler_name, schedule, prediction_name):
    x0 = images()
    prediction = find_prediction(prediction_name)
    net = PerfectNet(x0, schedule, prediction)
    result = sample(
        Denoiser(net, schedule, prediction),
        torch.zeros(3, 24),
        Sampler(sampler_name, 10),
        image_generators(0, range(3), "test"),
        SHAPE,
    )
    # At t = 999 of the cosine schedule √ᾱ is 5e-5: float32 leaves noise prediction little there.
    assert torch.allclose(result, x0, atol=2e-3)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps_begin_where_the_training_noise_ended(name, steps):
    x0, schedule = images(), NoiseSchedule()
    net = PerfectNet(x0, schedule, find_prediction("sample"))
    denoiser = Denoiser(net, schedule, find_prediction("sample"))
    generators = image_generators(0, range(3), "test")
    sample(denoiser, torch.zeros(3, 24), Sampler(name, steps), generators, SHAPE)
    timesteps = [timestep for _, timestep in net.calls]
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert timesteps == sorted(set(timesteps), reverse=True)


def test_full_ddpm_visits_every_timestep():
    x0, schedule = images(), NoiseSchedule("linear", 50)
    net = PerfectNet(x0, schedule, find_prediction("epsilon"))
    denoiser = Denoiser(net, schedule, find_prediction("epsilon"))
    generators = image_generators(0, range(3), "test")
    sample(denoiser, torch.zeros(3, 24), Sampler("ddpm", 50), generators, SHAPE)
    assert [timestep for _, timestep in net.calls] == list(range(49, -1, -1))


def check_timesteps(timesteps, total, steps):
    timesteps = np.asarray(timesteps)
    assert len(timesteps) == steps
    assert timesteps[0] == total - 1
    assert timesteps[-1] >= 0
    assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("total", [1, 2, 3, 10, 50, 97, 500, 1000, 1200])
def test_every_number_of_steps_is_taken_exactly(total):
    for steps in range(1, total + 1):
        check_timesteps(trailing_timesteps(total, steps), total, steps)


@pytest.mark.slow
def test_every_number_of_steps_of_every_number_of_timesteps_is_taken_exactly():
    for total in range(1, 2001):
        for steps in range(1, total + 1):
            check_timesteps(trailing_timesteps(total, steps), total, steps)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_the_timesteps_that_they_are_given(name, spacing):
    for total, steps in ((1000, 61), (1000, 103), (1200, 7), (1200, 112), (14, 13), (1, 1)):
        schedule = NoiseSchedule("squaredcos_cap_v2", total)
        sampler = Sampler(name, steps, spacing)
        scheduler = sampler.scheduler(schedule)
        check_timesteps(sampler.timesteps(schedule), total, steps)
        assert scheduler.timesteps.tolist() == sampler.timesteps(schedule)
        if name != "ddpm":  # which has no table of them
            levels = [*schedule.noise_to_signal()[scheduler.timesteps].tolist(), 0.0]
            assert scheduler.sigmas.tolist() == pytest.approx(levels, rel=1e-6)


def sampled_gaussian(name, steps, schedule, spacing="trailing"):
    """Mean and standard deviation of samples of N(.3, .2²) with the exact denoiser.

    E[x_0 | x_t] = m + α s² (x_t - α m) / (α² s² + σ²).
    """
    mean, variance = 0.3, 0.2**2

    def exact(x_t, timesteps, labels):
        alpha, sigma = schedule.alpha(timesteps, x_t), schedule.sigma(timesteps, x_t)
        gain = alpha * variance / (alpha.square() * variance + sigma.square())
        return mean + gain * (x_t - alpha * mean)

    denoiser = Denoiser(Net(exact), schedule, find_prediction("sample"))
    generators = image_generators(0, range(16), "test")
    sampler = Sampler(name, steps, spacing)
    result = sample(denoiser, torch.zeros(16, 24), sampler, generators, (3, 16, 16))
    return result.mean().item(), result.std().item()


@pytest.mark.parametrize("steps", [61, 103, 121, 122, 201, 206, 300])
@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_denoiser_of_a_gaussian_samples_that_gaussian(name, steps):
    mean, std = sampled_gaussian(name, steps, NoiseSchedule())
    assert mean == pytest.approx(0.3, abs=0.01)
    assert std == pytest.approx(0.2, abs=0.025)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_denoiser_of_a_gaussian_samples_it_along_a_flow(name, spacing):
    mean, std = sampled_gaussian(name, 100, FlowSchedule(), spacing)
    assert mean == pytest.approx(0.3, abs=0.01)
    assert std == pytest.approx(0.2, abs=0.025)


@pytest.mark.parametrize("steps", [7, 14, 28, 55])
@pytest.mark.parametrize("name", SAMPLERS)
def test_few_steps_sample_between_what_one_less_and_one_more_do(name, steps):
    schedule = NoiseSchedule(timesteps=1200)
    mean, std = sampled_gaussian(name, steps, schedule)
    (_, before), (_, after) = (sampled_gaussian(name, n, schedule) for n in (steps - 1, steps + 1))
    assert mean == pytest.approx(0.3, abs=0.01)
    assert before - 0.001 < std < after + 0.001


@pytest.mark.parametrize("name", SAMPLERS)
def test_spacing_of_saved_weights_is_known_to_diffusers(name, tmp_path):
    schedule = NoiseSchedule(timesteps=100)
    settings = {"image_size": 16, "block_out_channels": [8, 16], "attention": [False, False]}
    net = ConditionalUNet(**settings, mid_attention=False, layers_per_block=1, norm_groups=4)
    for spacing in SPACINGS:
        sampler = Sampler(name, 9, spacing)
        model = Model(net, schedule, find_prediction("sample"), sampler.description())
        folder = save_model(model, tmp_path / spacing)
        listed = json.loads((folder / "sampling.json").read_text())["timesteps"]
        assert listed == sampler.timesteps(schedule)
        assert load_model(folder).pipeline().timesteps == listed
        for kind in (DDPMScheduler, DPMSolverMultistepScheduler):
            scheduler = kind.from_pretrained(folder / "scheduler")
            assert scheduler.config.timestep_spacing == "trailing"
            scheduler.set_timesteps(timesteps=listed)
            assert scheduler.timesteps.tolist() == listed
            if spacing == "trailing":
                scheduler = kind.from_pretrained(folder / "scheduler")
                scheduler.set_timesteps(9)
                assert scheduler.timesteps.tolist() == listed


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(name):
    schedule, prediction = NoiseSchedule(), find_prediction("sample")

    def generate(indices):
        denoiser = Denoiser(Net(lambda x_t, t, labels: 0.5 * x_t), schedule, prediction)
        labels = torch.zeros(len(indices), 24)
        generators = image_generators(7, indices, "test")
        return sample(denoiser, labels, Sampler(name, 5), generators, SHAPE)

    together = generate([0, 1, 2, 3])
    assert torch.equal(generate([2]), together[2:3])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_on_step_sees_every_step_and_the_last_is_the_result(name):
    seen = []
    net = Net(lambda x_t, t, y: 0.3 * x_t)
    denoiser = Denoiser(net, NoiseSchedule(), find_prediction("sample"))
    generators = image_generators(0, range(2), "test")
    result = sample(
        denoiser, torch.zeros(2, 24), Sampler(name, 6), generators, SHAPE, on_step=seen.append
    )
    assert [step.number for step in seen] == list(range(6))
    assert torch.equal(seen[-1].x_t.clamp(-1, 1), result)
    assert all(step.x0.abs().max() <= 1 for step in seen)


def guided(scale, net=None):
    return Denoiser(net or LabelNet(), NoiseSchedule(), find_prediction("sample"), Guidance(scale))


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 4.0])
def test_guidance_extrapolates_from_the_unconditional_estimate(scale):
    labels = torch.zeros(2, 24)
    labels[:, 0] = 0.2
    x0 = guided(scale)(torch.zeros(2, *SHAPE), 500, labels)
    assert torch.allclose(x0, torch.full_like(x0, 0.2 * scale))


def test_guidance_is_one_call_of_twice_the_batch_and_none_at_scale_one():
    for scale, batches in ((1.0, [2]), (3.0, [4])):
        net = LabelNet()
        guided(scale, net)(torch.zeros(2, *SHAPE), 500, torch.zeros(2, 24))
        assert net.batches == batches


def test_guidance_of_any_prediction_is_that_of_x0():
    schedule, x_t = NoiseSchedule(), torch.randn(2, *SHAPE, dtype=torch.float64)
    labels = torch.zeros(2, 24, dtype=torch.float64)
    labels[:, 0] = 0.1
    estimates = []
    for name in PREDICTIONS:
        prediction = find_prediction(name)

        def net(x, timesteps, y, prediction=prediction):
            x0 = 0.2 + y.sum(1).view(-1, 1, 1, 1).expand_as(x)
            alpha, sigma = schedule.alpha(timesteps, x), schedule.sigma(timesteps, x)
            return prediction.target(x0, (x - alpha * x0) / sigma, alpha, sigma)

        denoiser = Denoiser(Net(net), schedule, prediction, Guidance(3.0))
        estimates.append(denoiser(x_t, 400, labels))
    assert all(torch.allclose(estimates[0], estimate) for estimate in estimates)


def test_every_image_needs_its_generator():
    with pytest.raises(ValueError, match="generators"):
        sample(guided(1.0), torch.zeros(3, 24), Sampler(), image_generators(0, [0], "test"), SHAPE)


@pytest.mark.parametrize("timesteps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("name", ["linear", "squaredcos_cap_v2"])
def test_karras_timesteps_are_distinct_and_fall(name, timesteps):
    schedule = NoiseSchedule(name, timesteps, beta_end=0.02 if timesteps > 50 else 0.2)
    for steps in {1, 2, 3, 5, 20, timesteps} & set(range(1, timesteps + 1)):
        for levels in ((4.0, 0.02, 5.0), (1e-6, 1e-7, 7.0), (1e9, 1e8, 0.5)):
            chosen = karras_timesteps(schedule, steps, *levels)
            assert len(chosen) == steps
            assert chosen == sorted(set(chosen), reverse=True)
            assert chosen[0] == timesteps - 1
            assert chosen[-1] >= 0


def test_karras_timesteps_have_the_noise_of_their_equation():
    schedule = NoiseSchedule(timesteps=10_000)
    first, *chosen = karras_timesteps(schedule, 7, 4.0, 0.02, 5.0)
    assert first == 9_999
    ends = 4.0**0.2, 0.02**0.2
    wanted = torch.tensor([(ends[0] + i / 5 * (ends[1] - ends[0])) ** 5 for i in range(6)])
    assert torch.allclose(schedule.noise_to_signal()[chosen], wanted, rtol=0.01)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver"])
def test_few_karras_steps_keep_the_mean_of_frames_that_vary_little(name):
    """Begun with pure noise where the ratio is 4, sampling would lose a part of the mean."""
    schedule, mean, std = NoiseSchedule(), 0.5, 0.01
    ratio = schedule.noise_to_signal()

    def exact(x_t, timesteps, labels):  # of frames N(mean, std²), each of one value
        y = (x_t * (1 + ratio[timesteps] ** 2).sqrt().view(-1, 1, 1, 1)).mean((1, 2, 3))
        variance = ratio[timesteps] ** 2 / x_t[0].numel()
        x0 = mean + std**2 / (std**2 + variance) * (y - mean)
        return x0.view(-1, 1, 1, 1).expand_as(x_t)

    denoiser = Denoiser(Net(exact), schedule, find_prediction("sample"))
    sampler = Sampler(name, 8, "karras", 4.0, 0.01)
    images = sample(denoiser, torch.zeros(64, 24), sampler, image_generators(0, range(64), "test"))
    assert images.mean() == pytest.approx(mean, abs=0.005)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_step_along_karras_timesteps(name):
    x0, schedule = images(), NoiseSchedule()
    net = PerfectNet(x0, schedule, find_prediction("sample"))
    sampler = Sampler(name, 8, "karras")
    result = sample(
        Denoiser(net, schedule, find_prediction("sample")),
        torch.zeros(3, 24),
        sampler,
        image_generators(0, range(3), "test"),
        SHAPE,
    )
    assert [t for _, t in net.calls] == karras_timesteps(schedule, 8, 4.0, 0.02, 5.0)
    assert torch.allclose(result, x0, atol=1e-4)
    assert sampler.description() == {
        "sampler": name,
        "steps": 8,
        "spacing": "karras",
        "max_noise": 4.0,
        "min_noise": 0.02,
        "rho": 5.0,
    }


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_guidance_rescales_as_diffusers_does(rescale):
    guided, unguided = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = Guidance(2.0, rescale=rescale).rescaled(1.5 * guided, unguided, mean=0.0)
    theirs = rescale_noise_cfg(1.5 * guided, unguided, guidance_rescale=rescale)
    torch.testing.assert_close(ours, theirs)


def test_the_mean_frame_is_found_in_a_buffer_and_behind_a_wrapper():
    net = DetailNet(8, [8], [1], timesteps=20, positions=True)
    assert mean_frame(net) is mean_frame(Float32IO(net)) is net.mean_frame
    assert mean_frame(LabelNet()).shape == ()


class PatternNet(Net):
    """Predicts a pattern times the sum of the labels, and knows a mean frame."""

    def __init__(self):
        self.pattern, self.mean_frame = images(2) / 9

    def __call__(self, x_t, timesteps, labels, positions=None):
        return labels.sum(1).view(-1, 1, 1, 1) * self.pattern


def test_rescaled_guidance_keeps_the_deviation_from_the_mean_frame():
    net, labels = PatternNet(), torch.zeros(3, 24)
    labels[:, 5] = torch.tensor([1.0, 2.0, 3.0])
    guidances = [None, *(Guidance(2.0, rescale=rescale) for rescale in (0, 0.5, 1))]
    estimates = [
        Denoiser(net, NoiseSchedule(), find_prediction("sample"), guidance)(images(), 500, labels)
        for guidance in guidances
    ]
    unguided, guided, half, whole = (
        (estimate - net.mean_frame).flatten(1).std(1) for estimate in estimates
    )
    assert (guided > 1.1 * unguided).all()
    torch.testing.assert_close(whole, unguided)
    torch.testing.assert_close(half, (unguided + guided) / 2)


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize(("low", "high"), [(0.0, None), (0.3, None), (1e9, None), (0.1, 2.0)])
def test_guidance_acts_in_its_interval_alone(spacing, low, high):
    net, schedule = LabelNet(), NoiseSchedule()
    guidance = Guidance(2.0, low, high)
    denoiser = Denoiser(net, schedule, find_prediction("sample"), guidance)
    pipeline = DenoisingPipeline(denoiser, Sampler("ddpm", 10, spacing), SHAPE)
    pipeline(torch.zeros(3, 24), image_generators(0, range(3), "test"))
    levels = schedule.noise_to_signal()[pipeline.timesteps]
    assert net.batches == [6 if low <= level <= (high or torch.inf) else 3 for level in levels]
    assert pipeline.network_calls(torch.zeros(3, 24)) == sum(net.batches) / 3
    described = {(0.1, 2.0): " at noise above 0.1 and below 2", (0.0, None): ""}
    assert described.get((low, high), f" at noise above {low:g}") in str(pipeline)
    assert pipeline.description().get("guidance_max_noise") == high
