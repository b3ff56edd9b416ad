"""Pipelines: the positions of the objects, and images by label names."""

import pytest
import torch

from helpers import tiny_module
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.rng import image_generators

LABELS = torch.stack(
    [
        ICLEVR_LABELS.encode(["red cube", "blue sphere"]),
        ICLEVR_LABELS.encode(["cyan cylinder", "gray cube"]),
    ]
)


def pipeline(layout="clear", positions=True):
    torch.manual_seed(0)
    net = UViT(16, [8], [1], width=32, depth=1, head_dim=16, positions=positions).eval()
    with torch.no_grad():  # as after some training: the output depends on the positions
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    denoiser = Denoiser(net, NoiseSchedule(timesteps=50), find_prediction("sample"))
    return DenoisingPipeline(denoiser, Sampler("ddpm", 3), (3, 16, 16), layout)


def generators():
    return image_generators(0, range(2), "test")


@pytest.mark.parametrize("layout", ["clear", "data"])
def test_positions_that_were_sampled_before_give_the_same_images(layout):
    pipe = pipeline(layout)
    mine = generators()
    positions = pipe.sample_positions(LABELS, mine)
    images = pipe(LABELS, mine, positions=positions)
    assert torch.equal(images, pipe(LABELS, generators()))


def test_the_layout_can_be_chosen_for_the_positions_alone():
    positions = pipeline().sample_positions(LABELS, generators(), "data")
    assert torch.equal(positions, pipeline("data").sample_positions(LABELS, generators()))
    assert not torch.equal(positions, pipeline().sample_positions(LABELS, generators()))


def test_images_depend_on_the_positions_given():
    positions = torch.zeros(2, LABELS.shape[1], 2)
    one, again, other = (
        pipeline()(LABELS, generators(), positions=positions + shift) for shift in (0, 0, 0.25)
    )
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 1e-3


def test_positions_of_a_label_set_instead_of_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"positions must be \(24, 2\), got \(1, 2\)"):
        pipeline().generate(["red cube"], positions=torch.zeros(1, 2))


def test_the_layout_is_named_if_the_network_takes_positions():
    clear, data, without = pipeline(), pipeline("data"), pipeline(positions=False)
    assert (clear.layout, data.layout, without.layout) == ("clear", "data", None)
    assert str(clear) == "ddpm 3 steps, guidance 1, layout clear"
    assert str(data) == "ddpm 3 steps, guidance 1, layout data"
    assert str(without) == "ddpm 3 steps, guidance 1"
    assert [pipe.folder for pipe in (clear, data)] == ["ddpm_3_w1", "ddpm_3_w1_data"]


def test_networks_without_positions_have_none_and_take_none():
    pipe = pipeline(positions=False)
    assert pipe.sample_positions(LABELS, generators()) is None
    with pytest.raises(ValueError, match="take no positions"):
        pipe(LABELS, generators(), positions=torch.zeros(2, LABELS.shape[1], 2))
    with pytest.raises(ValueError, match="layout=data: these weights take no positions"):
        pipeline("data", positions=False)
    module = tiny_module()
    with pytest.raises(ValueError, match="layout=data: these weights take no positions"):
        module.pipeline(module.net, Sampler("ddpm", 2), layout="data")


def test_images_of_names_are_those_of_the_sample_command():
    pipe = pipeline()
    images = pipe.generate(["red cube", "blue sphere"], count=2, seed=3)
    generators = image_generators(3, range(2), "sample")
    assert torch.equal(images, pipe(LABELS[:1].expand(2, -1), generators))
    first = pipe.generate(["red cube", "blue sphere"], count=1, seed=3)
    assert torch.allclose(first, images[:1], atol=1e-4)
