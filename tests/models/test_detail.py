"""The convolutional network, as it is without preconditioning; with it, see test_experts.py."""

import pytest
import torch

from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.schedule import FlowSchedule
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.optimizer import OptimizerSettings

TINY = {"image_size": 16, "channels": [8, 8], "blocks": [1, 1], "timesteps": 20, "positions": True}


def test_without_preconditioning_the_untrained_output_is_zero_for_any_prediction():
    net = DetailNet(**TINY, preconditioning=False)
    output = net(torch.randn(2, 3, 16, 16), torch.tensor([0, 19]), torch.zeros(2, 24), zeros())
    assert not output.any()


def test_with_preconditioning_the_untrained_output_is_the_wiener_estimate():
    net = DetailNet(**TINY)
    x_t = torch.randn(2, 3, 16, 16)
    output = net(x_t, torch.tensor([0, 19]), torch.zeros(2, 24), zeros())
    # The statistics are not fitted: σ / α is 1 at each timestep, and the mean image is 0.
    torch.testing.assert_close(output, x_t * 2**0.5 * 0.12**2 / (1 + 0.12**2))


def test_flow_needs_a_network_without_preconditioning():
    objective = Objective(FlowSchedule(20), "velocity")
    optimizer = OptimizerSettings("adamw", lr=1e-3)
    with pytest.raises(ValueError, match="DetailNet needs a variance-preserving schedule"):
        DiffusionModule(DetailNet(**TINY), objective, optimizer)
    DiffusionModule(DetailNet(**TINY, preconditioning=False), objective, optimizer)


def zeros(count=2):
    return torch.zeros(count, 24, 2)


def test_with_headings_the_output_depends_on_how_an_object_is_turned():
    net = DetailNet(**TINY, preconditioning=False, headings=True)
    torch.nn.init.normal_(net.conv_out.weight)
    labels = torch.zeros(1, 24)
    labels[0, 3] = 1
    ahead, turned = torch.zeros(2, 1, 24, 4)
    ahead[..., 2], turned[..., 3] = 1, 1
    x_t, timestep = torch.randn(1, 3, 16, 16), torch.tensor([9])
    outputs = [net(x_t, timestep, labels, positions) for positions in (ahead, turned)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_headings_need_positions():
    with pytest.raises(ValueError, match="headings need positions=true"):
        DetailNet(**TINY | {"positions": False}, headings=True)
