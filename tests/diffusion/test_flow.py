"""Rectified flow: one schedule and one prediction, through training, weights and sampling."""

import pytest
import torch

from helpers import datamodule, tiny_module, trainer
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import FlowSchedule
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.diffusion import DiffusionModule


def flow_module(**settings):
    like = tiny_module()
    objective = Objective(FlowSchedule(50), "velocity", **settings)
    return DiffusionModule(like.net, objective, like.optimizer_settings, label_drop=0.1)


def test_a_flow_trains_and_its_checkpoint_samples(tmp_path):
    module, ema = flow_module(noise_mean=0.0, noise_std=1.0), EMA(0.5)
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    training = trainer(tmp_path, [ema], max_steps=2)
    training.fit(module, datamodule())
    assert any(not torch.equal(before[name], v) for name, v in module.net.state_dict().items())
    training.save_checkpoint(tmp_path / "flow.ckpt")
    model = load_model(tmp_path / "flow.ckpt")
    assert (str(model.schedule), model.prediction.name) == ("flow, T=50", "velocity")
    pipeline = module.pipeline(ema.net.eval(), Sampler("ddim", 4))
    loaded = model.pipeline("ddim", 4)
    images = [one.generate(["red cube"], count=2, seed=0) for one in (pipeline, loaded)]
    assert torch.equal(*images)
    assert images[0].isfinite().all()


def test_the_loss_is_the_error_of_the_velocity():
    module = flow_module()
    x0, noise = torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    timesteps = torch.arange(8)
    loss = module.objective.loss(torch.zeros_like(x0), x0, noise, timesteps)
    assert loss.item() == pytest.approx((noise - x0).square().mean().item(), rel=1e-5)
