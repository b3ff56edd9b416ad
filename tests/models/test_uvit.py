import re

import pytest
import torch
from test_unet import inputs

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NUM_LABELS, SHAPES
from iclevr_diffusion.models import uvit, uvit_blocks
from iclevr_diffusion.models.known_networks import network_config, network_from_config
from iclevr_diffusion.models.uvit import UViT

TINY = {"image_size": 32, "channels": [8, 32], "blocks": [1, 1], "width": 32, "depth": 2}


def net_with(**settings):
    torch.manual_seed(0)
    net = UViT(**TINY | {"head_dim": 16} | settings).eval()
    with torch.no_grad():  # as after some training: no block is the identity any more
        for weight in net.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    return net


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_output_has_the_shape_of_the_input(patch_size):
    net = net_with(patch_size=patch_size)
    x_t, timesteps, labels = inputs()
    assert net(x_t, timesteps, labels).shape == x_t.shape


@pytest.mark.parametrize("object_tokens", [1, 6])
def test_an_image_depends_on_its_own_row_alone(object_tokens):
    net = net_with(object_tokens=object_tokens)
    x_t, timesteps, labels = inputs()
    with torch.no_grad():
        together = net(x_t, timesteps, labels)
        alone = net(x_t[:1], timesteps[:1], labels[:1])
        other_labels = net(x_t, timesteps, labels.flip(0))
        other_times = net(x_t, timesteps.flip(0), labels)
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert not torch.allclose(together, other_labels, atol=1e-3)
    assert not torch.allclose(together, other_times, atol=1e-3)


def test_positions_read_the_labels_from_their_tokens():
    net = net_with()
    x_t, timesteps, labels = inputs()
    with torch.no_grad():
        net.label_embedding.weight.zero_()  # so that they do not scale or shift either
        other = net(x_t, timesteps, labels.flip(0))
        assert not torch.allclose(net(x_t, timesteps, labels), other, atol=1e-3)


def test_a_label_is_described_by_its_colour_and_its_shape():
    labels, colors, shapes = uvit.describe(
        ICLEVR_LABELS.encode(["red cube", "red sphere"]), 8
    ).split([NUM_LABELS, len(COLORS), len(SHAPES)])
    assert ICLEVR_LABELS.decode(labels) == ("red cube", "red sphere")
    assert dict(zip(COLORS, colors.tolist(), strict=True)) == dict.fromkeys(COLORS, 0) | {"red": 2}
    assert dict(zip(SHAPES, shapes.tolist(), strict=True)) == {
        "cube": 1,
        "sphere": 1,
        "cylinder": 0,
    }


@pytest.mark.parametrize("count", [1, 2, 4])
def test_labels_come_one_by_one(count):
    rows = uvit.split_labels(ICLEVR_LABELS.encode(["blue sphere", "red cube"])[None], count)[0]
    expected = [("red cube",), ("blue sphere",), (), ()]
    assert [ICLEVR_LABELS.decode(row) for row in rows] == expected[:count]


def test_pixel_coordinates_are_an_input(monkeypatch):
    rows, columns = uvit._coordinates(torch.zeros(1, 5, 3, 5))[0]
    assert rows[:, 2].tolist() == [-1, 0, 1]
    assert columns[1].tolist() == [-1, -0.5, 0, 0.5, 1]
    net = net_with()
    with torch.no_grad():
        told = net(*inputs())
        monkeypatch.setattr(uvit, "_coordinates", lambda h: torch.zeros_like(h[:, :2]))
        assert not torch.allclose(told, net(*inputs()), atol=1e-3)


def test_features_that_exceed_the_range_of_float16_do_no_harm():
    net, given = net_with(), inputs()
    with torch.no_grad():
        for layer in net.to_finer:
            layer.weight.mul_(1e6)
        exact = net(*given)
        with torch.autocast("cpu", torch.float16):
            half = net(*given)
    assert torch.allclose(half.float(), exact, atol=0.05 * exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [False, True])
def test_every_weight_gets_a_gradient_in_half_precision(positions, dtype):
    """Processes that train together wait for all of them."""
    net = net_with(positions=positions)
    given = inputs_with_positions(net) if positions else inputs()
    with torch.autocast("cpu", dtype):
        output = net(*given)
    output.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in net.parameters())


def test_a_fresh_net_is_the_identity_between_its_ends():
    """Of the inner blocks none has put anything in yet: their first weights do not count."""
    torch.manual_seed(0)
    net = UViT(**TINY, head_dim=16).eval()
    with torch.no_grad():
        before = net(*inputs())
        for block in [*net.transformer, *net.down[0].blocks, *net.up[1].blocks]:
            for name, weight in block.named_parameters():
                if name in ("conv1.weight", "qkv.weight", "mlp_out.weight"):
                    weight.mul_(3)
        assert torch.equal(before, net(*inputs()))


def test_attention_of_processors_is_the_usual_one():
    query, key, value = torch.randn(3, 2, 4, 10, 8, generator=torch.Generator().manual_seed(0))
    usual = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(uvit_blocks.attention(query, key, value), usual, atol=1e-6)


def inputs_with_positions(net):
    x_t, timesteps, labels = inputs()
    generators = [torch.Generator().manual_seed(i) for i in range(len(labels))]
    return x_t, timesteps, labels, net.layout.sample(labels, generators)


@pytest.mark.parametrize("positions", [False, True])
def test_saved_and_loaded_net_puts_out_the_same(tmp_path, positions):
    net = net_with(positions=positions)
    net.save_pretrained(tmp_path / "unet")
    loaded = UViT.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False).eval()
    given = inputs_with_positions if positions else lambda net: inputs()
    with torch.no_grad():
        assert torch.equal(net(*given(net)), loaded(*given(loaded)))


def test_the_output_depends_on_the_positions():
    net = net_with(positions=True)
    x_t, timesteps, labels, positions = inputs_with_positions(net)
    with torch.no_grad():
        here, there = (net(x_t, timesteps, labels, sign * positions) for sign in (1, -1))
    assert not torch.allclose(here, there, atol=1e-3)


def test_positions_without_labels_do_not_count():
    """What guidance extrapolates from."""
    net = net_with(positions=True)
    x_t, timesteps, labels, positions = inputs_with_positions(net)
    nothing = torch.zeros_like(labels)
    with torch.no_grad():
        nowhere = net(x_t, timesteps, nothing, torch.zeros_like(positions))
        assert torch.allclose(nowhere, net(x_t, timesteps, nothing, positions))


def test_inner_weights_are_those_from_features_to_features():
    net = net_with()
    inner = {id(weight) for weight in net.inner_weights()}
    names = {name for name, weight in net.named_parameters() if id(weight) in inner}
    assert {
        "down.0.blocks.0.conv1.weight",
        "transformer.1.qkv.weight",
        "to_finer.0.weight",
    } <= names
    assert not any("embedding" in name or name.startswith("conv_") for name in names)
    assert all(weight.ndim > 1 for weight in net.inner_weights())


@pytest.mark.parametrize("colors", [None, 3])
def test_other_vocabularies_have_other_sizes(colors):
    net = net_with(positions=True, num_labels=15, num_colors=colors)
    x_t, timesteps, _ = inputs()
    labels = torch.eye(15)[:2]
    positions = torch.full((2, 15, 2), 0.25) * labels[..., None]
    with torch.no_grad():
        one, other = net(x_t, timesteps, labels, positions), net(x_t, timesteps, labels, -positions)
    assert one.shape == x_t.shape
    assert not torch.allclose(one, other)
    assert net.label_embedding.in_features == (15 + 3 + 5 if colors else 15 + 15 + 1)


def test_a_network_comes_back_from_its_config():
    net = network_from_config(network_config(net_with(width=64)))
    assert isinstance(net, UViT)
    assert net.config["width"] == 64


def test_a_class_that_nobody_registered_is_named():
    with pytest.raises(ValueError, match=r"network 'Strange' is unknown.*plugins=.*import it"):
        network_from_config({"_class_name": "Strange"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 8}, "channels and blocks must be lists"),
        ({"channels": [8, 24]}, "must be multiples of 16, or fewer"),
        ({"blocks": [1, 0]}, "blocks: each must be a whole number in 1..64, got 0"),
        ({"image_size": 36}, "image_size=36 must be a multiple of 8"),
        ({"object_tokens": 25}, "object_tokens must be a whole number in 1..24, got 25"),
        ({"object_tokens": True}, "object_tokens must be a whole number in 1..24, got"),
        (
            {"image_size": 1024, "patch_size": 1, "channels": [8], "blocks": [1]},
            "the number of image tokens must be a whole number in 1..4096",
        ),
        ({"depth": 0}, "depth must be a whole number in 1..64, got 0"),
        ({"width": 1e9}, "width must be a whole number in 1..4096"),
    ],
)
def test_settings_that_make_no_net_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UViT(**TINY | {"head_dim": 16} | settings)
