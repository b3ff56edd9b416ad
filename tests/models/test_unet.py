import pytest
import torch

from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.models.unet import LABEL_MODES, ConditionalUNet, label_stripes

TINY = {
    "image_size": 32,
    "block_out_channels": [16, 32],
    "attention": [False, True],
    "layers_per_block": 1,
    "norm_groups": 8,
}


def inputs(count=2, size=32):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.stack(
        [ICLEVR_LABELS.encode(["red cube"]), ICLEVR_LABELS.encode(["blue sphere", "cyan cylinder"])]
    )
    return x_t, torch.tensor([3, 900]), labels


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("labels", LABEL_MODES)
def test_output_has_the_shape_of_the_input(labels, patch_size):
    net = ConditionalUNet(**TINY, labels=labels, patch_size=patch_size, scale_shift=True)
    x_t, timesteps, multi_hot = inputs()
    assert net(x_t, timesteps, multi_hot).shape == x_t.shape


@pytest.mark.parametrize(
    ("labels", "matter"), [("embedding", True), ("concat", True), ("none", False)]
)
def test_labels_matter_unless_they_are_left_out(labels, matter):
    torch.manual_seed(0)
    net = ConditionalUNet(**TINY, labels=labels).eval()
    x_t, timesteps, multi_hot = inputs()
    with torch.no_grad():
        same = torch.equal(
            net(x_t, timesteps, multi_hot), net(x_t, timesteps, torch.zeros_like(multi_hot))
        )
    assert same is not matter


@pytest.mark.parametrize("labels", LABEL_MODES)
def test_saved_and_loaded_net_puts_out_the_same(labels, tmp_path):
    torch.manual_seed(0)
    net = ConditionalUNet(**TINY, labels=labels, patch_size=2, scale_shift=True, head_dim=16).eval()
    net.save_pretrained(tmp_path / "unet")
    loaded = ConditionalUNet.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False).eval()
    assert {path.suffix for path in (tmp_path / "unet").iterdir()} == {".json", ".safetensors"}
    with torch.no_grad():
        assert torch.equal(net(*inputs()), loaded(*inputs()))


def test_lab_net_has_the_reports_size():
    with torch.device("meta"):
        net = ConditionalUNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 113_686_019


def test_label_stripes_are_the_stripes_of_report_5():
    planes = label_stripes(torch.eye(24)[[0, 5]], 64)
    assert planes.shape == (2, 3, 64, 64)
    expected = torch.zeros(64)
    expected[10:12] = 1
    assert torch.equal(planes[1], expected.expand(3, 64, 64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": "film"}, "labels must be one of embedding, concat, none; got 'film'"),
        ({"attention": [True]}, "2 levels, attention 1"),
        ({"image_size": 30, "patch_size": 4}, "must be a multiple of 8"),
        ({"head_dim": 24}, "head_dim=24"),
        ({"norm_groups": 32}, "norm_groups=32"),
        ({"labels": "concat", "image_size": 16}, "an image_size of 24 or more"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(settings, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        ConditionalUNet(**{**TINY, **settings})


@pytest.mark.slow
def test_compiling_in_place_keeps_the_keys_of_the_weights():
    net = ConditionalUNet(**TINY)
    keys = list(net.state_dict())
    net.compile()
    assert list(net.state_dict()) == keys
