"""``benchmarks/locality.py``: its gradients and what it makes of them."""

import pytest
import torch
from packaging.version import Version

from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.models.uvit import UViT

SIZE = 16


@pytest.fixture
def locality(program):
    return program("locality")


def network(positions):
    torch.manual_seed(0)
    if positions is None:
        settings = {"block_out_channels": [8, 16], "attention": [False, True], "norm_groups": 4}
        return ConditionalUNet(image_size=SIZE, layers_per_block=1, **settings)
    return UViT(SIZE, channels=[8], blocks=[1], width=32, depth=1, positions=positions)


def example(locality, count=2):
    torch.manual_seed(1)
    labels = torch.zeros(count, 24)
    labels[:, [0, 9, 20]] = 1
    positions = (torch.rand(count, 24, 2) - 0.5) * labels[..., None]
    return locality.Scenes(torch.rand(count, 3, SIZE, SIZE) * 2 - 1, labels, positions)


@pytest.mark.skipif(
    Version(torch.__version__).release < (2, 12),
    reason="torch < 2.12 fails in the forward derivative of group normalization",
)
@pytest.mark.parametrize("positions", [None, False, True])
def test_gradients_are_those_of_small_differences(locality, positions):
    net = network(positions).double().eval()
    for parameter in net.parameters():  # those that begin at zero, too
        parameter.data += 0.05 * torch.randn_like(parameter)
    model = Model(net, NoiseSchedule(timesteps=50), find_prediction("v_prediction"), {})
    data = locality.Scenes(*(part.double() for part in example(locality)))
    found = locality.gradients(model, data, 20)
    assert found.keys() == ({"label", "position"} if positions else {"label"})

    shape = tuple(data.images.shape[1:])
    noise = locality.randn(shape, locality.image_generators(0, range(2), "l"))
    x_t = model.schedule.add_noise(data.images, noise, torch.full((2,), 20))
    step, less = 1e-6, locality.PRESENT * data.labels
    less[:, 9] -= step
    with torch.no_grad():
        whole, lower = (
            locality.estimate(model, x_t, 20, labels, data.positions)
            for labels in (locality.PRESENT * data.labels, less)
        )
    expected = ((whole - lower) / step).norm(dim=1)
    torch.testing.assert_close(found["label"][:, 1], expected, rtol=1e-3, atol=1e-6)


def test_a_local_gradient_has_no_cross_and_an_equal_one_reaches_everywhere(locality):
    distance = locality.distances(example(locality, count=8))
    equal = locality.figures(torch.ones_like(distance), distance)
    assert equal["cross"] == pytest.approx(1)
    assert equal["reach"] == equal["reach_if_equal"]
    local = locality.figures((distance < 0.15).float(), distance)
    assert local["cross"] == 0
    assert local["reach"] < 0.15
