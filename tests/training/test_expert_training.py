"""Training the expert for low noise, with the coarse one frozen."""

import dataclasses
from pathlib import Path

import pytest
import torch

from helpers import RandomFrames, SaveAt, slow, trainer
from iclevr_diffusion.data.adapters import ICLEVRDataModule
from iclevr_diffusion.data.crops import Crops
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.optimizer import OptimizerSettings


class GrowingFrames(RandomFrames):
    """Each frame of a sequence shows one object more than the one before."""

    def load_frames(self):
        frames = super().load_frames()
        labels = torch.zeros(len(frames), NUM_LABELS)
        for index, row in enumerate(labels):
            row[: index % 3 + 1] = 1
        return dataclasses.replace(frames, labels=labels)


def datamodule():
    data = ICLEVRDataModule(GrowingFrames(), batch_size=4, val_fraction=0.1)
    data.with_positions = True
    return data


def module(**settings):
    torch.manual_seed(0)
    coarse = {"channels": [8], "blocks": [1], "width": 32, "depth": 1, "positions": True}
    detail = {"channels": [8, 16], "blocks": [1, 1], "timesteps": 50}
    net = NoiseExperts(coarse, detail, 16)
    objective = Objective(
        NoiseSchedule(timesteps=50),
        "sample",
        data_std=0.12,
        max_weight=None,
        max_noise=0.35,
        noise_mean=-2.66,
        noise_std=1.2,
    )
    optimizer = OptimizerSettings("muon", lr=1e-3, matrix_lr=1e-3, weight_decay=0.1)
    return DiffusionModule(net, objective, optimizer, label_drop=0.1, crops=Crops(8), **settings)


def test_the_coarse_expert_stays_as_it_is_and_the_other_one_moves(tmp_path):
    ours, ema, before = module(), EMA(0.9), module().net.state_dict()
    trainer(tmp_path, [ema], max_epochs=2).fit(ours, datamodule())
    for net in (ours.net, ema.net):
        for name, value in net.state_dict().items():
            if name.startswith("coarse."):
                assert torch.equal(value, before[name]), name
        weights = [name for name, weight in net.named_parameters() if name.startswith("detail.")]
        assert all(not torch.equal(net.state_dict()[name], before[name]) for name in weights)


def test_the_detail_net_learns_the_mean_frame_and_the_noise_levels(tmp_path):
    ours, ema, data = module(), EMA(0.9), datamodule()
    trainer(tmp_path, [ema]).fit(ours, data)
    train = data.frames.images[data.train_indices].float()
    for net in (ours.net, ema.net):
        assert torch.allclose(net.detail.mean_frame, train.mean(0) / 127.5 - 1, atol=1e-6)
        assert torch.equal(net.detail.noise_to_signal, ours.schedule.noise_to_signal())


@pytest.mark.parametrize("batch", [3, *slow(8)])
def test_resumed_run_ends_with_the_same_weights(tmp_path, batch):
    unbroken, unbroken_ema = module(), EMA(0.9)
    save = SaveAt(batch, tmp_path / "last.ckpt")
    trainer(tmp_path, [unbroken_ema, save], max_epochs=2).fit(unbroken, datamodule())
    resumed, resumed_ema = module(), EMA(0.9)
    trainer(tmp_path, [resumed_ema], max_epochs=2).fit(
        resumed, datamodule(), ckpt_path=Path(tmp_path / "last.ckpt"), weights_only=True
    )
    for ours, theirs in ((unbroken.net, resumed.net), (unbroken_ema.net, resumed_ema.net)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_processes_share_the_crops_of_a_batch():
    """Two processes with half the batch each cut what one would cut."""
    data = datamodule()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    whole = module()
    corner = whole.cropped(batch, 3)[1][0]

    class SecondOfTwo:
        world_size, current_epoch, global_rank = 2, 0, 1

    second = module()
    second._trainer = SecondOfTwo()
    half = batch._replace(
        **{name: getattr(batch, name)[2:] for name in ("images", "labels", "positions")}
    )
    assert torch.equal(second.cropped(half, 3)[1][0], corner[2:])


def test_validation_is_on_whole_frames_at_the_noise_that_is_trained():
    ours = module()
    draw = ours.noise_for_frames(torch.zeros(64, 3, 16, 16), list(range(64)))
    levels = ours.schedule.noise_to_signal()[draw.timesteps]
    assert draw.noise.shape == (64, 3, 16, 16)
    assert levels.max() < 0.35
    assert draw.timesteps.max() == ours.objective.trained_timesteps - 1


def test_loss_begins_at_about_one(tmp_path):
    """Of frames that deviate from their mean by what is expected of them."""
    ours = module()
    x0 = 0.12 * torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours.net.fit_statistics(torch.full((1, 3, 16, 16), 127.5), ours.schedule.noise_to_signal())
    draw = ours.noise_for_batch(x0, 0, 0)
    x_t = ours.schedule.add_noise(x0, draw.noise, draw.timesteps)
    labels = torch.zeros(len(x0), NUM_LABELS)
    output = ours.net(x_t, draw.timesteps, labels, torch.zeros(*labels.shape, 2))
    loss = ours.objective.loss(output, x0, draw.noise, draw.timesteps)
    assert loss.item() == pytest.approx(1.0, abs=0.05)
