import pytest
import torch

from helpers import SaveAt, datamodule, slow, tiny_module, trainer
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.types import Batch, to_unit_range
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.optimizer import OptimizerSettings


def weights_after(folder, seed=0, **settings):
    module = tiny_module(seed)
    run = trainer(folder, **settings)
    run.fit(module, datamodule(seed))
    return torch.cat([parameter.detach().flatten() for parameter in module.net.parameters()])


def test_same_seed_gives_the_same_weights(tmp_path):
    assert torch.equal(weights_after(tmp_path), weights_after(tmp_path))


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path):
    assert not torch.equal(weights_after(tmp_path), weights_after(tmp_path, seed=1))


# An epoch has 8 batches: within the first, at its end, within the second.
@pytest.mark.parametrize(
    ("batch", "accumulate"), [(8, 1), (11, 3), *slow((3, 1), (11, 1), (3, 3), (8, 3))]
)
def test_resumed_run_ends_with_the_same_weights(tmp_path, batch, accumulate):
    settings = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
    if accumulate == 3:
        batch = {3: 3, 8: 8, 11: 14}[batch]  # where an optimizer step has just been made

    unbroken, unbroken_ema = tiny_module(warmup_steps=2, decay="cosine"), EMA(0.9)
    save = SaveAt(batch, tmp_path / "last.ckpt")
    trainer(tmp_path, [unbroken_ema, save], **settings).fit(unbroken, datamodule())

    resumed, resumed_ema = tiny_module(warmup_steps=2, decay="cosine"), EMA(0.9)
    trainer(tmp_path, [resumed_ema], **settings).fit(
        resumed, datamodule(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    for ours, theirs in ((unbroken.net, resumed.net), (unbroken_ema.net, resumed_ema.net)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_label_drop_takes_away_all_labels_of_some_frames():
    module = tiny_module(label_drop=0.25)
    keep = torch.cat(
        [module.noise_for_batch(torch.zeros(64, 3, 4, 4), 0, i).keep for i in range(20)]
    )
    assert set(keep.unique().tolist()) == {0.0, 1.0}
    assert 1 - keep.mean().item() == pytest.approx(0.25, abs=0.05)


def test_a_frame_of_unknown_places_trains_the_unconditional_estimate():
    labels = torch.zeros(2, NUM_LABELS)
    labels[:, 3] = 1
    positions = torch.zeros(2, NUM_LABELS, 2)
    positions[0, 3], positions[1, 3] = torch.tensor([0.5, -0.25]), torch.nan
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    batch = Batch(images, labels, torch.arange(2), positions)
    known_labels, known_positions = tiny_module().condition(batch)
    assert torch.equal(known_labels[0], labels[0])
    assert torch.equal(known_positions[0], positions[0])
    assert not known_labels[1].any()
    assert not known_positions[1].any()


def test_timesteps_reach_both_ends():
    module = tiny_module()
    draws = [module.noise_for_batch(torch.zeros(64, 3, 4, 4), 0, i).timesteps for i in range(20)]
    assert torch.cat(draws).min() == 0
    assert torch.cat(draws).max() == module.schedule.timesteps - 1


def test_random_numbers_differ_from_batch_to_batch_and_epoch_to_epoch():
    module, x0 = tiny_module(), torch.zeros(4, 3, 4, 4)
    noises = [module.noise_for_batch(x0, e, b).noise for e, b in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(noise.flatten()[:8].tolist()) for noise in noises}) == 4


def test_validation_noise_depends_on_the_frame_alone():
    module, x0 = tiny_module(), torch.zeros(3, 3, 4, 4)
    together = module.noise_for_frames(x0, [5, 6, 7])
    alone = module.noise_for_frames(x0[:1], [6])
    assert torch.equal(alone.noise[0], together.noise[1])
    assert alone.timesteps[0] == together.timesteps[1]


def test_validation_errors_are_means_over_frames(tmp_path):
    def errors(batch_size):
        data = datamodule(batch_size=batch_size, sequences=24)
        (values,) = trainer(tmp_path).validate(tiny_module(), data, verbose=False)
        return values

    assert errors(batch_size=4) == pytest.approx(errors(batch_size=6))  # 4 + 2, of 6


def test_uint8_maps_to_the_unit_range():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    settings = OptimizerSettings(warmup_steps=10, decay="cosine", final_lr_fraction=0.1)
    factors = [settings.lr_factor(step, 110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_learning_rate_stays_and_falls_over_the_last_fifth():
    settings = OptimizerSettings(warmup_steps=10, decay="trapezoid", final_lr_fraction=0.1)
    factors = [settings.lr_factor(step, 110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert set(factors[10:90]) == {1.0}
    assert factors[100] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=0.05)


def test_gradients_are_clipped_to_the_bound(tmp_path):
    module = tiny_module(clip_norm=1e-3, name="adam")
    for parameter in module.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.log = lambda *args, **kwargs: None
    module.configure_gradient_clipping(torch.optim.Adam(module.net.parameters()))
    norm = torch.cat([p.grad.flatten() for p in module.net.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
