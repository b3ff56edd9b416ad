import math

import pytest
import torch

from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.prediction import PREDICTIONS, find_prediction
from iclevr_diffusion.diffusion.schedule import FlowSchedule, NoiseSchedule

SCHEDULES = ("linear", "squaredcos_cap_v2")
NAMES = tuple(PREDICTIONS)
ALL = [
    (schedule, name)
    for schedule in (NoiseSchedule("linear"), NoiseSchedule("squaredcos_cap_v2"), FlowSchedule())
    for name in NAMES
    if schedule.variance_preserving or not find_prediction(name).variance_preserving
]


def levels(schedule, timesteps, like):
    return schedule.alpha(timesteps, like), schedule.sigma(timesteps, like)


def noisy(schedule, count=64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, 3, 4, 4, generator=generator, dtype=torch.float64)
    timesteps = torch.linspace(0, schedule.timesteps - 1, count).long()
    return x0, noise, timesteps, schedule.add_noise(x0, noise, timesteps)


@pytest.mark.parametrize(("schedule", "name"), ALL, ids=str)
def test_x0_to_target_and_back_is_exact(schedule, name):
    x0, noise, timesteps, x_t = noisy(schedule)
    alpha, sigma = levels(schedule, timesteps, x0)
    prediction = find_prediction(name)
    back = prediction.to_x0(prediction.target(x0, noise, alpha, sigma), x_t, alpha, sigma)
    # Noise prediction divides by α, down to 5e-5: eleven digits are left of sixteen.
    assert torch.allclose(back, x0, atol=1e-10)


@pytest.mark.parametrize(("schedule", "name"), ALL, ids=str)
def test_squared_error_of_the_output_is_the_weighted_one_of_x0(schedule, name):
    x0, noise, timesteps, x_t = noisy(schedule)
    alpha, sigma = levels(schedule, timesteps, x0)
    prediction = find_prediction(name)
    target = prediction.target(x0, noise, alpha, sigma)
    output = target + 0.1 * torch.randn_like(target)
    output_error = (output - target).square().mean((1, 2, 3))
    x0_error = (prediction.to_x0(output, x_t, alpha, sigma) - x0).square().mean((1, 2, 3))
    weight = prediction.x0_weight(schedule.snr(timesteps).double())
    assert torch.allclose(output_error, weight * x0_error, rtol=1e-3)


@pytest.mark.parametrize("schedule", [NoiseSchedule(), FlowSchedule()], ids=str)
def test_min_snr_makes_all_predictions_minimise_the_same_loss(schedule):
    x0, noise, timesteps, x_t = noisy(schedule)
    estimate = x0 + 0.05 * torch.randn_like(x0)
    alpha, sigma = levels(schedule, timesteps, x0)
    noise_estimate = (x_t - alpha * estimate) / sigma
    losses = []
    for name in [name for one, name in ALL if type(one) is type(schedule)]:
        output = find_prediction(name).target(estimate, noise_estimate, alpha, sigma)
        losses.append(Objective(schedule, name, 5.0).loss(output, x0, noise, timesteps).item())
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_weight_is_one_without_min_snr(name):
    objective = Objective(NoiseSchedule(), name)
    assert torch.equal(objective.weight(torch.arange(1000)), torch.ones(1000))


def test_min_snr_weights_of_epsilon_are_the_papers():
    schedule = NoiseSchedule("linear")
    timesteps = torch.arange(1000)
    snr = schedule.snr(timesteps)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    assert torch.allclose(Objective(schedule, "epsilon", 5.0).weight(timesteps), expected)


@pytest.mark.parametrize("name", NAMES)
def test_loss_of_the_right_output_is_zero_and_of_another_is_not(name):
    schedule = NoiseSchedule()
    x0, noise, timesteps, _ = noisy(schedule)
    objective = Objective(schedule, name)
    target = objective.prediction.target(x0, noise, *levels(schedule, timesteps, x0))
    assert objective.loss(target, x0, noise, timesteps).item() == 0
    assert objective.loss(target + 0.1, x0, noise, timesteps).item() == pytest.approx(0.01)


def test_output_in_bfloat16_is_compared_in_float32():
    schedule = NoiseSchedule()
    x0, noise, timesteps, _ = noisy(schedule)
    loss = Objective(schedule).loss(noise.bfloat16(), x0.float(), noise.float(), timesteps)
    assert loss.dtype == torch.float32


def test_two_weightings_exclude_each_other():
    with pytest.raises(ValueError, match="cannot both be set"):
        Objective(NoiseSchedule(), "sample", min_snr_gamma=5.0, data_std=0.15)


def test_weights_of_a_data_std_are_those_of_karras():
    schedule, std, timesteps = NoiseSchedule(), 0.146, torch.arange(100, 1000)
    sigma = schedule.noise_to_signal()[timesteps]
    expected = std**2 * (sigma**2 + std**2) / (sigma * std) ** 2
    weight = Objective(schedule, "sample", data_std=std).weight(timesteps)
    assert torch.allclose(weight, expected, rtol=1e-4)
    assert Objective(schedule, "sample", data_std=std).weight(torch.tensor([0])).item() == 5


def test_data_std_makes_all_predictions_minimise_the_same_loss():
    schedule = NoiseSchedule("linear")
    timesteps = torch.arange(1000)
    of_x0 = Objective(schedule, "sample", data_std=0.1).weight(timesteps)
    for name in NAMES:
        weight = Objective(schedule, name, data_std=0.1).weight(timesteps)
        share = find_prediction(name).x0_weight(schedule.snr(timesteps))
        assert torch.allclose(weight * share, of_x0)


def test_timesteps_are_uniform_without_a_shift():
    objective = Objective(NoiseSchedule(timesteps=8))
    drawn = objective.timesteps(8000, torch.Generator().manual_seed(0))
    assert (drawn.bincount(minlength=8) - 1000).abs().max() < 150


@pytest.mark.parametrize("shift", [0.5, 2.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_shift_multiplies_the_noise_to_signal_ratio(name, shift):
    schedule = NoiseSchedule(name)
    plain, shifted = (
        Objective(schedule, timestep_shift=by).timesteps(5000, torch.Generator().manual_seed(0))
        for by in (1.0, shift)
    )
    inner = (shifted > 5) & (shifted < 990)  # at the ends the table's steps are coarse
    ratios = schedule.noise_to_signal()
    assert torch.allclose(ratios[shifted][inner], shift * ratios[plain][inner], rtol=0.2)
    assert shifted.min() >= 0
    assert shifted.max() < 1000
    assert inner.float().mean() > 0.8
    assert (shifted[plain == 999] == 999).all()
    assert (plain == 999).any()


def test_log_normal_timesteps_have_the_noise_of_a_truncated_normal():
    schedule = NoiseSchedule(timesteps=10_000)
    settings = {"max_noise": 0.35, "noise_mean": -2.66, "noise_std": 1.2}
    objective = Objective(schedule, "sample", **settings)
    timesteps = objective.timesteps(20_000, torch.Generator().manual_seed(0))
    levels = schedule.noise_to_signal()[timesteps].log()
    assert levels.max() < math.log(0.35)
    assert timesteps.max() == objective.trained_timesteps - 1
    normal = torch.distributions.Normal(-2.66, 1.2)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        inside = share * normal.cdf(torch.tensor(math.log(0.35)))
        expected = normal.icdf(inside).item()
        assert levels.quantile(share).item() == pytest.approx(expected, abs=0.04)


def test_max_noise_bounds_uniform_timesteps_too():
    objective = Objective(NoiseSchedule(), "sample", max_noise=0.35)
    timesteps = objective.timesteps(5000, torch.Generator().manual_seed(0))
    ratios = objective.schedule.noise_to_signal()
    assert ratios[timesteps.max()] < 0.35 <= ratios[timesteps.max() + 1]


def test_without_a_bound_the_weight_is_karras_own():
    schedule, timesteps = NoiseSchedule(), torch.tensor([0, 50, 500])
    weight = Objective(schedule, "sample", data_std=0.12, max_weight=None).weight(timesteps)
    sigma = schedule.noise_to_signal()[timesteps]
    expected = (sigma.square() + 0.12**2) / (sigma * 0.12).square()
    assert torch.allclose(weight, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_noise": 1e-9},
        {"max_noise": 0.3, "timestep_shift": 0.5},
        {"noise_mean": math.nan, "noise_std": 1.0},
        {"noise_mean": 1.0, "noise_std": 0.2, "max_noise": 0.25},
    ],
)
def test_noise_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=r"must be|must be set together|is below"):
        Objective(NoiseSchedule(), "sample", **settings)


def test_v_prediction_is_refused_where_the_variance_is_not_preserved():
    with pytest.raises(ValueError, match="v_prediction needs a variance-preserving schedule"):
        Objective(FlowSchedule(), "v_prediction")
    with pytest.raises(ValueError, match="v_prediction needs a variance-preserving schedule"):
        Objective(FlowSchedule(), "velocity", sampled_as="v_prediction")


def test_log_normal_noise_of_a_flow_is_a_logit_normal_time():
    """As Esser et al. 2024, arXiv 2403.03206, section 3.1, sample the times of rectified flow."""
    objective = Objective(FlowSchedule(10_000), "velocity", noise_mean=0.0, noise_std=1.0)
    timesteps = objective.timesteps(20_000, torch.Generator().manual_seed(0))
    logits = objective.schedule.sigmas[timesteps].logit()
    assert logits.mean().item() == pytest.approx(0, abs=0.03)
    assert logits.std().item() == pytest.approx(1, abs=0.03)
