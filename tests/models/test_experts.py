import re

import pytest
import torch

from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS, Vocabulary
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.load_experts import DetailSettings, load_detail, load_experts
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.models.known_networks import network_config, network_from_config
from iclevr_diffusion.models.position_features import label_maps
from iclevr_diffusion.models.protocol import CropNetwork
from iclevr_diffusion.models.uvit import UViT

SIZE = 32
COARSE = {
    "channels": [8],
    "blocks": [1],
    "width": 32,
    "depth": 1,
    "head_dim": 16,
    "positions": True,
}
DETAIL = {"channels": [8, 16], "blocks": [1, 1], "timesteps": 50}
SCHEDULE = NoiseSchedule(timesteps=50)


def images(count=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator).byte()


def changed(net):
    """As after some training: no block is the identity any more."""
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            )
    return net.eval()


def detail_net():
    torch.manual_seed(0)
    net = DetailNet(image_size=SIZE, **DETAIL)
    net.fit_statistics(images(), SCHEDULE.noise_to_signal())
    return net


def experts(**settings):
    torch.manual_seed(0)
    net = NoiseExperts(COARSE, DETAIL, SIZE, **settings)
    net.detail.fit_statistics(images(), SCHEDULE.noise_to_signal())
    return net


def inputs(count=3):
    generator = torch.Generator().manual_seed(2)
    labels, positions = torch.zeros(count, NUM_LABELS), torch.zeros(count, NUM_LABELS, 2)
    labels[:, 3] = 1
    positions[:, 3] = torch.tensor([0.3, -0.2])
    x_t = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return x_t, torch.tensor([1, 5, 9])[:count], labels, positions


def test_a_fresh_detail_net_gives_the_wiener_estimate():
    net, (x_t, timesteps, labels, positions) = detail_net(), inputs()
    alpha_bar = SCHEDULE.alpha(timesteps, x_t).square()
    mean = images().float().mean(0) / 127.5 - 1
    share = alpha_bar * 0.12**2 / (alpha_bar * 0.12**2 + 1 - alpha_bar)
    expected = mean + share * (x_t / alpha_bar.sqrt() - mean)
    assert torch.allclose(net(x_t, timesteps, labels, positions), expected, atol=1e-4)


def test_preconditioning_has_unit_input_and_unit_target():
    net, sigma = detail_net(), torch.tensor([0.01, 0.1, 1.0])
    c_skip, c_out = net.output_scales(sigma)
    # Karras et al. 2022, eq. 117: the variance of (x_0 - c_skip y) / c_out is 1.
    target = (1 - c_skip).square() * 0.12**2 + c_skip.square() * sigma.square()
    assert torch.allclose(target, c_out.square())


def test_inputs_of_a_crop_are_those_of_the_frame():
    net, (x_t, timesteps, *condition) = detail_net(), inputs()
    corner = torch.tensor([[0, 0], [3, 16], [16, 7]])
    crops = torch.stack(
        [x[:, r : r + 16, c : c + 16] for x, (r, c) in zip(x_t, corner, strict=True)]
    )
    sigma = net.noise_to_signal[timesteps]
    whole = net.inputs(x_t, sigma, *condition, None)
    for part, frame in zip(net.inputs(crops, sigma, *condition, corner), whole, strict=True):
        for i, (r, c) in enumerate(corner):
            assert torch.equal(part[i], frame[i, :, r : r + 16, c : c + 16])


def test_the_middle_of_a_large_crop_is_denoised_as_in_the_frame():
    """Borders differ: what is beyond a crop is zero to the convolutions."""
    torch.manual_seed(0)
    net = DetailNet(image_size=SIZE, channels=[8], blocks=[1], timesteps=50)
    net.fit_statistics(images(), SCHEDULE.noise_to_signal())
    x_t, timesteps, *condition = inputs(1)
    reach = 6  # six convolutions of 3x3
    with torch.no_grad():
        frame = changed(net)(x_t, timesteps, *condition)
        crop = net(x_t[:, :, 4:28, 8:32], timesteps, *condition, torch.tensor([[4, 8]]))
    inner = crop[:, :, reach:-reach, reach:-reach]
    assert torch.allclose(
        inner, frame[:, :, 4 + reach : 28 - reach, 8 + reach : 32 - reach], atol=1e-5
    )
    assert not torch.allclose(crop, frame[:, :, 4:28, 8:32], atol=1e-5)


def test_the_detail_net_sees_the_labels_at_their_positions():
    net, (x_t, timesteps, labels, positions) = changed(detail_net()), inputs()
    _, _, told = net.inputs(x_t, net.noise_to_signal[timesteps], labels, positions, None)
    maps = label_maps(labels, positions, SIZE, 8)
    assert torch.allclose(told[:, 8:19], maps, atol=1e-6)
    assert told[:, 19:].sum() < 0.3 * maps.sum()  # the same ones, sharper
    assert torch.equal(told[:, 19:].flatten(2).argmax(2)[0], maps.flatten(2).argmax(2)[0])
    with torch.no_grad():
        here, there = (net(x_t, timesteps, labels, sign * positions) for sign in (1, -1))
    assert not torch.allclose(here, there)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_weight_of_the_detail_net_gets_a_gradient_in_half_precision(dtype):
    net = changed(detail_net())
    with torch.autocast("cpu", dtype):
        output = net(*inputs())
    assert output.dtype == torch.float32
    output.square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in net.parameters())


def test_each_row_goes_to_the_expert_of_its_noise():
    net = changed(experts())
    x_t, _, *condition = inputs()
    ratios = SCHEDULE.noise_to_signal()
    low, high = int((ratios < 0.35).sum()) - 1, int((ratios < 0.35).sum())
    with torch.no_grad():
        mixed = net(x_t, torch.tensor([low, high, low]), *condition)
        detail = net.detail(x_t, torch.full((3,), low), *condition)
        coarse = net.coarse(x_t, torch.full((3,), high), *condition)
        assert torch.equal(net(x_t, torch.full((3,), low), *condition), detail)
        assert torch.equal(net(x_t, torch.full((3,), high), *condition), coarse)
    assert torch.allclose(mixed[[0, 2]], detail[[0, 2]], atol=1e-6)
    assert torch.allclose(mixed[1], coarse[1], atol=1e-6)


def test_only_the_detail_part_is_trained():
    net = experts()
    assert {name.split(".")[0] for name, w in net.named_parameters() if w.requires_grad} == {
        "detail"
    }
    inner = {id(weight) for weight in net.inner_weights()}
    assert inner < {id(weight) for weight in net.detail.parameters()}


def test_experts_are_saved_and_loaded_as_one_network(tmp_path):
    net = changed(experts(switch=0.5))
    sampling = {"sampler": "ddpm", "steps": 3, "guidance_scale": 1.0}
    save_model(Model(net, SCHEDULE, find_prediction("sample"), sampling), tmp_path / "weights")
    model = load_model(tmp_path / "weights")
    x_t, _, *condition = inputs()
    assert isinstance(model.net, NoiseExperts)
    assert model.net.switch == 0.5
    for timesteps in (torch.full((3,), 2), torch.full((3,), 45)):
        with torch.no_grad():
            given = x_t, timesteps, *condition
            assert torch.equal(net(*given), model.net(*given))
    assert model.flops_forward() > 0
    assert model.image_shape == (3, SIZE, SIZE)


def test_a_network_comes_back_from_its_config():
    net = network_from_config(network_config(experts(switch=0.5)))
    assert isinstance(net, NoiseExperts)
    assert net.switch == 0.5


@pytest.mark.parametrize(
    ("coarse", "detail", "more", "message"),
    [
        ({"positions": False}, {}, {}, "coarse.positions must be true"),
        ({"width": 10**9}, {}, {}, "coarse.width must be a whole number in 1..4096"),
        ({}, {"channels": [8, 10**9]}, {}, "detail.channels: each must be a whole number in"),
        ({}, {"blocks": [1]}, {}, "detail.channels has 2 levels, blocks 1"),
        ({}, {"timesteps": 10**9}, {}, "detail.timesteps must be a whole number in 1..100000"),
        ({}, {"data_std": 0}, {}, "detail.data_std must be above 0, got 0"),
        ({}, {}, {"switch": "low"}, "switch must be above 0, got 'low'"),
        ({}, {}, {"detail_settings": "os"}, "detail_settings must be a mapping, got 'os'"),
    ],
)
def test_settings_that_make_no_experts_are_refused(coarse, detail, more, message):
    settings = {"coarse_settings": COARSE | coarse, "detail_settings": DETAIL | detail}
    with torch.device("meta"), pytest.raises(ValueError, match=re.escape(message)):
        NoiseExperts(**settings | {"image_size": SIZE} | more)


def test_noise_levels_that_do_not_fit_are_refused(tmp_path):
    net = experts()
    net.detail.noise_to_signal[3] = 0
    model = Model(net, SCHEDULE, find_prediction("sample"), {})
    save_model(model, tmp_path / "weights")
    with pytest.raises(Exception, match="noise_to_signal must be positive and rise"):
        load_model(tmp_path / "weights")


def test_a_detail_net_by_itself_has_a_layout_and_comes_back_from_its_weights(tmp_path):
    torch.manual_seed(0)
    net = DetailNet(image_size=SIZE, **DETAIL, positions=True)
    net.fit_statistics(images(), SCHEDULE.noise_to_signal())
    assert isinstance(net, CropNetwork)
    folder = save_model(
        Model(changed(net), SCHEDULE, find_prediction("sample"), {}), tmp_path / "w"
    )
    loaded = load_model(folder).net
    assert isinstance(loaded, DetailNet)
    assert torch.equal(loaded(*inputs()), net(*inputs()))


def test_noise_levels_of_another_schedule_are_refused():
    with pytest.raises(ValueError, match="another number of timesteps"):
        experts().check_weights(40)


def coarse_weights(folder, **settings):
    """The weights of an untrained U-ViT, with the labels a, b, … if there are not 24."""
    net = UViT(image_size=SIZE, **COARSE, **settings)
    names = (
        None if net.num_labels == NUM_LABELS else Vocabulary("abcdefghijklmno"[: net.num_labels])
    )
    model = Model(net, SCHEDULE, find_prediction("sample"), {}, vocabulary=names or ICLEVR_LABELS)
    return save_model(model, folder / "weights")


def test_experts_have_the_labels_of_the_data(tmp_path):
    weights = coarse_weights(tmp_path, num_labels=15, num_colors=3)
    net = load_experts(SCHEDULE, weights, image_size=SIZE, num_labels=15).eval()
    net.detail.fit_statistics(images(), SCHEDULE.noise_to_signal())
    assert (net.num_labels, net.detail.num_labels, net.detail.num_colors) == (15, 15, 3)
    labels = torch.eye(15)[:2]
    for timestep in (0, 49):
        x0 = net(
            torch.randn(2, 3, SIZE, SIZE),
            torch.tensor([timestep] * 2),
            labels,
            labels[..., None].expand(-1, -1, 2),
        )
        assert x0.shape == (2, 3, SIZE, SIZE)


def test_experts_of_other_labels_than_the_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="know 24 labels, but the data has 15"):
        load_experts(SCHEDULE, coarse_weights(tmp_path), image_size=SIZE, num_labels=15)


def test_the_network_for_low_noise_starts_from_trained_weights(tmp_path):
    trained = Model(experts(), SCHEDULE, find_prediction("sample"), {})
    weights = save_model(trained, tmp_path / "trained")
    settings = {key: DETAIL[key] for key in ("channels", "blocks")}
    net = load_experts(
        SCHEDULE,
        weights,
        weights,
        detail=DetailSettings(**settings, data_std=trained.net.detail.config["data_std"]),
        image_size=SIZE,
    )
    for name, value in trained.net.detail.state_dict().items():
        assert torch.allclose(net.detail.state_dict()[name], value, atol=1e-3), name


@pytest.mark.parametrize(
    ("weights", "line"),
    [("coarse", "are not of experts"), ("trained", r"have channels=\[.*\], not \[8, 8\]")],
)
def test_other_weights_for_the_network_for_low_noise_are_refused(tmp_path, weights, line):
    save_model(Model(experts(), SCHEDULE, find_prediction("sample"), {}), tmp_path / "trained")
    coarse_weights(tmp_path).rename(tmp_path / "coarse")
    with pytest.raises(ValueError, match=line):
        load_experts(
            SCHEDULE,
            tmp_path / "coarse",
            tmp_path / weights,
            detail=DetailSettings(channels=(8, 8), blocks=(1, 1)),
            image_size=SIZE,
        )


def detail_weights(folder, **settings):
    """The weights of an untrained DetailNet."""
    torch.manual_seed(0)
    net = DetailNet(image_size=SIZE, **DETAIL, positions=True, **settings)
    net.fit_statistics(images(), SCHEDULE.noise_to_signal())
    if net.config["headings"]:
        net.layout.turning[:8] = True
    return save_model(Model(changed(net), SCHEDULE, find_prediction("sample"), {}), folder)


def test_a_detail_net_with_headings_can_be_the_coarse_expert(tmp_path):
    weights = detail_weights(tmp_path / "coarse", headings=True)
    settings = DetailSettings(**{key: DETAIL[key] for key in ("channels", "blocks")})
    net = load_experts(SCHEDULE, weights, switch=0.3, detail=settings, image_size=SIZE)
    net.detail.fit_statistics(images(), SCHEDULE.noise_to_signal())
    experts = Model(changed(net), SCHEDULE, find_prediction("sample"), {"steps": 4})
    loaded = load_model(save_model(experts, tmp_path / "experts"))
    labels = torch.eye(NUM_LABELS)[:2]
    generated = [
        model.pipeline()(labels, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
        for model in (experts, loaded)
    ]
    assert torch.equal(*generated)
    assert loaded.net.layout.dimensions == 4


def test_a_trained_network_takes_headings_without_an_effect_at_first(tmp_path):
    weights = detail_weights(tmp_path / "trained")
    net = load_detail(50, weights, headings=True, image_size=SIZE).eval()
    trained = load_model(weights).net
    x_t, timesteps, labels, positions = inputs()
    headings = torch.randn_like(positions)
    torch.testing.assert_close(
        net(x_t, timesteps, labels, torch.cat([positions, headings], -1)),
        trained(x_t, timesteps, labels, positions),
    )


def test_a_network_of_another_schedule_cannot_be_trained_on(tmp_path):
    with pytest.raises(ValueError, match="have timesteps=50, not 100"):
        load_detail(100, detail_weights(tmp_path / "trained"), image_size=SIZE)
