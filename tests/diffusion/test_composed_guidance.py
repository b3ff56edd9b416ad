"""Composition of single-label conditions at sampling, and negation."""

from functools import partial

import pytest
import torch

from iclevr_diffusion.data.labels import ICLEVR_LABELS as LABELS
from iclevr_diffusion.data.negation import check_signed, encode_all_signed, encode_signed
from iclevr_diffusion.diffusion.composed_guidance import ComposedGuidance
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.rng import image_generators

SIZE = 16
ONE = [("red cube",), ("cyan sphere",), ("gray cylinder",)]
MIXED = [*ONE, ("red cube", "blue sphere"), ("red cube", "blue sphere", "not gray cube")]
ONLY_NEGATED = ("not red cube", "not blue sphere")


def network(positions, dtype=torch.float32):
    torch.manual_seed(0)
    net = UViT(SIZE, channels=[8], blocks=[1], width=32, depth=1, positions=positions)
    for parameter in net.parameters():  # those that begin at zero, too
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval().to(dtype)


class Watched:
    """Passes calls on to a network, and keeps the labels and positions that it was asked for."""

    def __init__(self, net):
        self.net, self.takes_positions, self.layout = net, net.takes_positions, net.layout
        self.labels, self.positions = [], []

    def __call__(self, x_t, timesteps, labels, positions=None):
        self.labels.append(labels)
        self.positions.append(positions)
        return self.net(x_t, timesteps, labels, positions)


def denoiser(net, guidance):
    return Denoiser(net, NoiseSchedule(), find_prediction("v_prediction"), guidance)


def encoded(label_sets):
    return encode_all_signed(label_sets, LABELS)


def inputs(label_sets, positions, dtype=torch.float32):
    labels = encoded(label_sets)
    x_t = torch.randn(len(labels), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if not positions:
        return x_t.to(dtype), labels.to(dtype), None
    where = Layout(SIZE).sample(labels, image_generators(0, range(len(labels)), "test"))
    return x_t.to(dtype), labels.to(dtype), where.to(dtype)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(
    ("scale", "rescale"), [(0.3, 0.0), (1.0, 0.0), (1.7, 0.0), (1.7, 0.7), (4.0, 0.0)]
)
@torch.no_grad()
def test_of_one_label_composed_guidance_is_joint_guidance_bit_for_bit(scale, rescale, positions):
    net = network(positions)
    pipelines = [
        DenoisingPipeline(
            denoiser(net, kind(scale, min_noise=0.1, max_noise=4.0, rescale=rescale)),
            Sampler("dpm_solver", 6),
            (3, SIZE, SIZE),
        )
        for kind in (Guidance, ComposedGuidance)
    ]
    labels = encoded(ONE)
    images = [p(labels, image_generators(0, range(len(ONE)), "test")) for p in pipelines]
    assert torch.equal(*images)
    assert len({pipeline.network_calls(labels) for pipeline in pipelines}) == 1


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1.7])
@torch.no_grad()
def test_composition_is_the_sum_of_single_label_terms(scale, positions):
    """Image by image and label by label, in float64, from calls with one row each."""
    net = network(positions, torch.float64)
    x_t, labels, where = inputs([*MIXED, ONLY_NEGATED], positions, torch.float64)
    ours = denoiser(net, ComposedGuidance(scale))(x_t, 500, labels, where)
    alone = denoiser(net, None)
    for row in range(len(labels)):

        def estimate(wanted, row=row):
            there = None if where is None else where[row : row + 1] * wanted[:, :, None]
            return alone.estimate(500, x_t[row : row + 1], wanted, there)

        nothing = estimate(torch.zeros(1, 24, dtype=torch.float64))
        expected = nothing.clone()
        for index in labels[row].nonzero().flatten().tolist():
            one = torch.zeros(1, 24, dtype=torch.float64)
            one[0, index] = 1
            sign = labels[row, index]
            weight = sign * scale if scale != 1 or sign > 0 else 0
            expected += weight * (estimate(one) - nothing)
        torch.testing.assert_close(ours[row : row + 1], expected.clamp(-1, 1))


@torch.no_grad()
def test_rescaling_compares_with_the_composition_at_a_scale_of_one():
    net = network(positions=True)
    x_t, labels, where = inputs(MIXED, positions=True)
    whole = partial(denoiser(net, None).estimate, 500)
    plain, rescaled = (
        ComposedGuidance(1.7, rescale=rescale).estimate(whole, x_t, labels, where, 1.7)
        for rescale in (0, 1)
    )
    unguided = ComposedGuidance().estimate(whole, x_t, labels, where, 1)
    a, b, c = (image.flatten(1).std(1) for image in (unguided, plain, rescaled))
    assert not torch.isclose(a, b, rtol=1e-4).any()
    torch.testing.assert_close(a, c)


@torch.no_grad()
def test_the_network_sees_one_label_at_a_time_each_at_its_own_position():
    net = Watched(network(positions=True))
    x_t, labels, where = inputs(MIXED, positions=True)
    denoiser(net, ComposedGuidance(2.0))(x_t, 500, labels, where)
    (seen,), (at,) = net.labels, net.positions
    assert seen.sum(1).tolist() == [1.0] * 8 + [0.0] * 5
    terms = [(row, index) for row, index in labels.nonzero().tolist()]
    for number, (row, index) in enumerate(terms):
        assert seen[number].nonzero().flatten().tolist() == [index]
        assert torch.equal(at[number, index], where[row, index])
        assert at[number].abs().sum() == where[row, index].abs().sum()
    assert not at[len(terms) :].any()


@pytest.mark.parametrize(("low", "high"), [(0.0, None), (0.1, 2.0)])
def test_calls_are_those_that_the_network_gets(low, high):
    net = Watched(network(positions=False))
    guidance = ComposedGuidance(2.0, low, high)
    pipeline = DenoisingPipeline(denoiser(net, guidance), Sampler("ddim", 6), (3, SIZE, SIZE))
    labels = encoded([*MIXED, ONLY_NEGATED])
    pipeline(labels, image_generators(0, range(len(labels)), "test"))
    assert pipeline.network_calls(labels) == sum(map(len, net.labels)) / len(labels)
    guided = sum(scale != 1 for scale in map(guidance.scale_at, NoiseSchedule().noise_to_signal()))
    assert (guided == 1000) == (high is None)


def test_negated_objects_do_not_move_the_others():
    layout = Layout(SIZE)
    both = layout.sample(encoded([("red cube", "not blue sphere")]), image_generators(0, [0], "t"))
    only = layout.sample(encoded([("red cube",)]), image_generators(0, [0], "t"))
    blue = LABELS.index["blue sphere"]
    assert both[0, blue].any()
    both[0, blue] = 0
    assert torch.equal(both, only)


def test_negated_labels_need_a_scale_at_which_they_count():
    pipeline = DenoisingPipeline(
        denoiser(network(positions=False), ComposedGuidance(1.0)),
        Sampler("ddim", 2),
        (3, SIZE, SIZE),
    )
    with pytest.raises(ValueError, match=r"labels with 'not' need a guidance\.scale other than 1"):
        pipeline.generate(["red cube", "not blue sphere"])
    pipeline.generate(["red cube", "blue sphere"])


@pytest.mark.parametrize("text", ["Red cubes, not the Blue sphere", "red cube and NOT blue sphere"])
def test_negated_labels_are_parsed(text):
    assert check_signed(text, LABELS) == ("red cube", "not blue sphere")
    assert check_signed([text], LABELS) == ("red cube", "not blue sphere")
    vector = encode_signed(text, LABELS)
    assert vector[LABELS.index["red cube"]] == 1
    assert vector[LABELS.index["blue sphere"]] == -1
    assert vector.abs().sum() == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red cube, not red cube", "label given twice: red cube"),
        ("not red cone", "unknown label 'red cone'"),
        ("not", "unknown label 'not'"),
        ("", "no label given"),
    ],
)
def test_wrong_negations_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        check_signed(text, LABELS)
