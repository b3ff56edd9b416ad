import pytest
import torch
from diffusers import DDPMScheduler

from iclevr_diffusion.diffusion.schedule import (
    FlowSchedule,
    NoiseSchedule,
    Schedule,
    register_schedule,
    schedule_config,
    schedule_from_config,
)

NAMES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


@pytest.mark.parametrize("timesteps", [10, 1000, 1200])
@pytest.mark.parametrize("name", NAMES)
def test_alphas_cumprod_are_those_of_diffusers(name, timesteps):
    ours = NoiseSchedule(name, timesteps)
    theirs = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=name)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(
    ("name", "total", "snr_first", "snr_last"),
    [
        ("linear", 275.51323, 9999.0, 4.0359927e-5),
        ("squaredcos_cap_v2", 495.57751, 24221.3, 2.4287669e-9),
    ],
)
def test_schedules_match_stored_sums(name, total, snr_first, snr_last):
    # Summed in float64, straight from the formulas of the papers.
    schedule = NoiseSchedule(name, 1000)
    assert schedule.alphas_cumprod.double().sum().item() == pytest.approx(total, rel=1e-4)
    snr = schedule.snr(torch.tensor([0, 999])).tolist()
    assert snr[0] == pytest.approx(snr_first, rel=0.01)
    assert snr[1] == pytest.approx(snr_last, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_signal_only_ever_falls(name):
    table = NoiseSchedule(name, 1000).alphas_cumprod
    assert (table.diff() < 0).all()
    assert 0 < table[-1] < table[0] < 1


def test_add_noise_is_that_of_diffusers():
    x0, noise = torch.randn(2, 5, 3, 8, 8)
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    ours = NoiseSchedule("linear").add_noise(x0, noise, timesteps)
    theirs = DDPMScheduler(beta_schedule="linear").add_noise(x0, noise, timesteps)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_noisy_images_of_unit_variance_keep_it():
    x0, noise = torch.randn(2, 4, 3, 64, 64)
    x_t = NoiseSchedule("linear").add_noise(x0, noise, torch.tensor([0, 300, 600, 999]))
    assert torch.allclose(x_t.var((1, 2, 3)), torch.ones(4), atol=0.05)


def test_schedule_that_leaves_nothing_of_the_image_is_refused():
    """Most samplers would divide by the rest, which float32 cannot hold."""
    with pytest.raises(ValueError, match="linear leaves nothing of the image"):
        NoiseSchedule("linear", timesteps=10_000)
    assert NoiseSchedule("linear", timesteps=10_000, beta_end=0.002).timesteps == 10_000


def test_paths_of_a_flow_are_straight():
    schedule, timesteps = FlowSchedule(100), torch.arange(100)
    x0, noise = torch.randn(2, 100, 3, 2, 2, dtype=torch.float64)
    x_t = schedule.add_noise(x0, noise, timesteps)
    share = ((timesteps.double() + 0.5) / 100).view(-1, 1, 1, 1)
    assert torch.allclose(x_t, x0 + share * (noise - x0), atol=1e-6)
    assert (schedule.alphas > 0).all()
    assert torch.allclose(schedule.alphas + schedule.sigmas, torch.ones(100))


@pytest.mark.parametrize("schedule", [NoiseSchedule("linear"), FlowSchedule()], ids=str)
def test_ratios_and_tables_are_those_of_alpha_and_sigma(schedule):
    ratio = schedule.sigmas / schedule.alphas
    assert (ratio.diff() > 0).all()
    assert torch.allclose(schedule.noise_to_signal(), ratio, rtol=1e-5)
    timesteps = torch.tensor([0, 500, 999])
    assert torch.allclose(schedule.snr(timesteps), ratio[timesteps] ** -2, rtol=1e-3)
    total = (schedule.alphas.square() + schedule.sigmas.square()).sqrt()
    assert torch.allclose(schedule.alphas_cumprod, (schedule.alphas / total).square(), atol=1e-6)
    assert schedule.scale(500) == pytest.approx(total[500].item())
    assert schedule.variance_preserving == torch.allclose(total, torch.ones(1000), atol=1e-6)


@pytest.mark.parametrize("schedule", [NoiseSchedule("linear", 50), FlowSchedule(50)], ids=str)
def test_a_schedule_comes_back_from_its_config(schedule):
    again = schedule_from_config(schedule_config(schedule))
    assert type(again) is type(schedule)
    assert torch.equal(again.alphas, schedule.alphas)


def test_schedules_are_looked_up_and_not_imported():
    with pytest.raises(ValueError, match=r"schedule 'os.system' is unknown.*plugins=.*import it"):
        schedule_from_config({"_class_name": "os.system"})

    class FlowSchedule(Schedule): ...

    with pytest.raises(ValueError, match="there is another schedule named FlowSchedule"):
        register_schedule(FlowSchedule)


@pytest.mark.parametrize(
    "setting", [{"rescale_betas_zero_snr": True}, {"trained_betas": [0.1, 0.2]}], ids=str
)
def test_a_scheduler_of_diffusers_with_other_betas_is_refused(setting):
    config = dict(DDPMScheduler(num_train_timesteps=2, **setting).config)
    with pytest.raises(ValueError, match="is not supported"):
        schedule_from_config({**config, "_class_name": "DDPMScheduler"})
