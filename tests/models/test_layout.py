import pytest
import torch

from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS
from iclevr_diffusion.data.positions import FIRST, fit_prior
from iclevr_diffusion.data.synthetic import camera
from iclevr_diffusion.data.synthetic.camera import MARKED_HEIGHT
from iclevr_diffusion.data.synthetic.scenes import sample_scenes
from iclevr_diffusion.models.layout import (
    CLEARANCE,
    LAYOUTS,
    Layout,
    check_positions,
)
from iclevr_diffusion.models.position_features import encode_positions, label_maps

RING = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, -0.7]])


GOLDEN = [
    [[31.5, 27.02], [58.0, 0.0], [46.0, 24.0], [19.0, 21.0]],
    [[7.0, 7.0], [31.5, 27.02], [6.0, 33.0], [2.0, 59.0]],
]

FOUR = ["red cube", "blue sphere", "gray cylinder", "red sphere"]


def generators(count, seed=0):
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(count)]


def fitted():
    """A layout of frames whose first object is at (0, -.14), the others on a ring."""
    labels, positions = torch.zeros(8, NUM_LABELS), torch.zeros(8, NUM_LABELS, 2)
    labels[:, 3] = 1
    positions[:, 3] = torch.tensor([0.0, -0.14])
    labels[4:, 7] = 1
    positions[4:, 7] = RING
    layout = Layout(64)
    layout.set_prior(fit_prior(labels, positions))
    return layout


def test_first_objects_and_others_are_learned_apart():
    layout = fitted()
    assert torch.allclose(layout.first, torch.tensor([0.0, -0.14]))
    assert layout.density.sum() == pytest.approx(1)
    assert layout.density.nonzero().tolist() == [[2, 8], [8, 4], [8, 12], [12, 8]]


def test_unknown_positions_do_not_count():
    layout, plain = Layout(64), Layout(64)
    labels = torch.zeros(2, NUM_LABELS)
    labels[:, 0] = 1
    layout.set_prior(fit_prior(labels, torch.full((2, NUM_LABELS, 2), torch.nan)))
    assert torch.equal(layout.density, plain.density)
    assert torch.equal(layout.first, plain.first)


def test_one_object_is_at_the_first_position_and_the_others_follow_the_density():
    labels = ICLEVR_LABELS.encode_all([["red cube", "blue sphere", "gray cylinder"]] * 20)
    positions = fitted().sample(labels, generators(20))
    assert (positions[labels == 0] == 0).all()
    middle = torch.tensor([0.0, -0.14])
    is_first = (positions[labels > 0].view(20, 3, 2) - middle).abs().amax(2) < 1e-6
    assert (is_first.sum(1) == 1).all()
    assert is_first.any(0).all()  # any of the labels may be first
    others = positions[labels > 0].view(20, 3, 2)[~is_first]
    assert (torch.cdist(others, RING).amin(1) < 0.18).all()  # a cell is .125 wide


def test_objects_of_clear_keep_their_distance():
    labels = ICLEVR_LABELS.encode_all([FOUR] * 50)
    positions = Layout(64).sample(labels, generators(50))[labels > 0].view(50, 4, 2)
    distances = torch.cdist(positions, positions) + 9 * torch.eye(4)
    assert distances.amin() >= CLEARANCE


def test_sampled_positions_are_pixel_centers():
    labels = ICLEVR_LABELS.encode_all([["red cube", "blue sphere", "gray cylinder"]] * 20)
    pixels = (Layout(64).sample(labels, generators(20))[labels > 0] + 1) * 32 - 0.5
    first = (pixels == 31.5).all(1)  # this layout's first objects stand in the middle
    assert first.sum() == 20
    assert torch.allclose(pixels[~first], pixels[~first].round(), atol=1e-4)


def test_many_objects_take_the_clearest_positions_left():
    labels = torch.ones(2, NUM_LABELS)
    positions = fitted().sample(labels, generators(2))
    assert positions.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_density_that_is_none_is_refused(value):
    layout = Layout(64)
    layout.check()
    layout.density.fill_(value)
    with pytest.raises(ValueError, match=r"layout\.density is negative"):
        layout.check()


def test_a_layout_follows_from_its_generator_alone():
    labels = ICLEVR_LABELS.encode_all([["red cube", "blue sphere"], ["gray cube", "red cube"]])
    both = fitted().sample(labels, generators(2))
    second = fitted().sample(labels[1:], generators(2)[1:])
    assert torch.equal(both[1:], second)


def test_a_blob_is_painted_for_colour_and_shape():
    labels, positions = ICLEVR_LABELS.encode(["red sphere"])[None], torch.zeros(1, NUM_LABELS, 2)
    positions[labels > 0] = torch.tensor([0.5, -0.25])
    maps = label_maps(labels, positions, 32, 8)
    assert maps.shape == (1, 11, 32, 32)
    shown = [int(i) for i in maps.flatten(2).amax(2)[0].nonzero().flatten()]
    assert shown == [1, 8 + 1]  # red, sphere
    peak = maps[0, 1].flatten().argmax()
    assert (int(peak) // 32, int(peak) % 32) in {(11, 23), (11, 24), (12, 23), (12, 24)}
    assert maps.max() <= 1


def test_no_labels_paint_nothing():
    nothing = torch.zeros(1, NUM_LABELS)
    assert not label_maps(nothing, torch.zeros(1, NUM_LABELS, 2), 16, 8).any()


def test_positions_are_encoded_by_waves():
    positions = torch.tensor([[0.0, 0.0], [0.3, -0.2]])
    waves = encode_positions(positions)
    assert waves.shape == (2, 34)
    assert torch.equal(waves[:, :2], positions)
    assert not torch.allclose(waves[0, 2:], waves[1, 2:])


def test_clear_samples_what_it_did_when_it_was_the_only_layout():
    layout = fitted()
    layout.density.fill_(1 / 256)
    labels = ICLEVR_LABELS.encode_all([FOUR] * 2)
    pixels = (layout.sample(labels, generators(2))[labels > 0].view(2, 4, 2) + 1) * 32 - 0.5
    expected = torch.tensor(GOLDEN)
    assert torch.allclose(pixels, expected, atol=1e-3)


def of_scenes(count):
    """Labels and positions of the frames of synthetic scenes, and the scenes' floor positions."""
    scenes = sample_scenes(0, torch.arange(count), 3)
    floor = scenes.solids.position.view(count, 3, 2)
    middles = torch.cat([floor, torch.full((count, 3, 1), MARKED_HEIGHT)], dim=2)
    seen = torch.stack(camera.project(middles.transpose(1, 2)), dim=2)
    seen = (((seen + 1) * 32).floor() + 0.5) / 32 - 1
    seen[:, 0] = torch.tensor(FIRST)
    labels, positions = [], []
    for objects in (1, 2, 3):
        index = scenes.labels()[:, :objects]
        labels.append(torch.zeros(count, NUM_LABELS).scatter(1, index, 1.0))
        where = index[..., None].expand(-1, -1, 2)
        positions.append(torch.zeros(count, NUM_LABELS, 2).scatter(1, where, seen[:, :objects]))
    return torch.cat(labels), torch.cat(positions), seen


def largest_difference(one, other):
    """Between two cumulative distributions: the two-sample statistic of Kolmogorov and Smirnov."""
    values = torch.cat([one, other])
    cdf = [(sample[:, None] <= values).float().mean(0) for sample in (one, other)]
    return float((cdf[0] - cdf[1]).abs().max())


def measured(seen):
    """What is compared of positions (N, 3, 2), the first object's in front."""
    first, second, third = seen.unbind(1)
    others = torch.cat([second, third])
    return {
        "x": others[:, 0],
        "y": others[:, 1],
        "to_first": torch.cat([second - first, third - first]).norm(dim=1),
        "between": (second - third).norm(dim=1),
    }


@pytest.mark.slow
def test_data_samples_positions_as_in_the_frames_and_clear_does_not():
    labels, positions, seen = of_scenes(1000)
    layout = Layout(64)
    layout.set_prior(fit_prior(labels, positions))
    three = labels[2000:]
    differences = {}
    for name in LAYOUTS:
        sampled = layout.sample(three, generators(1000), name)[three > 0].view(-1, 3, 2)
        is_first = (sampled - layout.first).abs().amax(2) < 1e-6
        order = is_first.int().argsort(dim=1, descending=True, stable=True)
        sampled = sampled.gather(1, order[..., None].expand(-1, -1, 2))
        expected = measured(seen)
        found = measured(sampled)
        differences[name] = {k: largest_difference(found[k], expected[k]) for k in found}
    assert max(differences["data"].values()) < 0.06, differences  # two such samples differ by .05
    assert differences["clear"]["to_first"] > 0.12


def test_objects_of_data_keep_their_distance_on_the_floor_only():
    labels, positions, _ = of_scenes(200)
    layout = Layout(64)
    layout.set_prior(fit_prior(labels, positions))
    three = labels[400:]
    sampled = layout.sample(three, generators(200), "data")[three > 0].view(-1, 3, 2)
    on_floor = camera.floor_under(sampled.flatten(0, 1), MARKED_HEIGHT).view(-1, 3, 2)
    apart = 9 * torch.eye(3)
    assert (torch.cdist(on_floor, on_floor) + apart).amin() >= camera.CLEARANCE - 1e-4
    assert (torch.cdist(sampled, sampled) + apart).amin() < CLEARANCE - 0.05


def test_data_keep_to_the_density_where_no_scene_of_ours_has_objects():
    labels = ICLEVR_LABELS.encode_all([["red cube", "blue sphere"]] * 50)
    layout = fitted()
    layout.density.zero_()
    layout.density[0, 0] = 1  # the upper left corner
    sampled = layout.sample(labels, generators(50), "data")[labels > 0].view(50, 2, 2)
    others = sampled[(sampled - layout.first).abs().amax(2) > 1e-6]
    assert len(others) == 50
    assert (others < -0.875).all()


def test_data_are_pixels_and_finite_whatever_the_number_of_objects():
    labels = torch.ones(2, NUM_LABELS)
    layout = fitted()
    sampled = layout.sample(labels, generators(2), "data")
    others = sampled[(sampled - layout.first).abs().amax(2) > 1e-6]
    pixels = (others + 1) * 32 - 0.5
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)


def test_given_positions_become_those_of_frames():
    layout = fitted()
    given = torch.tensor([[0.001, -0.139], [0.3, -0.2], [1.0, -1.0], [0.02, -0.14]])
    pixels = [[0.0, -0.14], [0.296875, -0.203125], [0.984375, -0.984375], [0.015625, -0.140625]]
    assert torch.allclose(layout.snap(given), torch.tensor(pixels))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda positions: positions[:, :3], "must have shape"),
        (lambda positions: positions + 1.5, "must be in"),
        (lambda positions: positions * torch.nan, "must be in"),
    ],
)
def test_positions_that_make_no_sense_are_refused(change, words):
    labels = ICLEVR_LABELS.encode(["red cube"])[None]
    positions = torch.zeros(1, NUM_LABELS, 2)
    assert check_positions(positions, labels) is positions
    with pytest.raises(ValueError, match=words):
        check_positions(change(positions), labels)


# Headings.


def labels_of(*sets):
    return torch.stack([ICLEVR_LABELS.encode(one) for one in sets])


def layout_with_headings():
    layout = Layout(64, NUM_LABELS)
    layout.turning[:8] = True  # cubes
    return layout


def test_cubes_get_headings_and_all_but_the_first_object_a_place_in_the_pixel():
    labels = labels_of(("red cube", "blue sphere"), ("gray cylinder", "green cube"))
    layout = layout_with_headings()
    with_headings = layout.sample(labels, generators(2))
    lengths = with_headings[..., 2:].norm(dim=-1)
    is_cube = (torch.arange(NUM_LABELS) < 8) & (labels > 0)
    torch.testing.assert_close(lengths, is_cube.float())

    pixels = Layout(64).sample(labels, generators(2))
    moves = (with_headings[..., :2] - pixels).abs() * 32
    first = (pixels == layout.first).all(-1)
    assert torch.equal((moves > 0).any(-1), (labels > 0) & ~first)
    assert moves.max() <= 0.5


def test_given_positions_get_headings_once():
    labels = labels_of(("red cube",))
    layout, given = layout_with_headings(), torch.zeros(1, NUM_LABELS, 2)
    completed = layout.with_headings(given, labels, generators(1))
    assert completed.shape == (1, NUM_LABELS, 4)
    assert layout.with_headings(completed, labels, generators(1)) is completed
    assert Layout(64).with_headings(given, labels, generators(1)) is given
    assert torch.equal(layout.snap(completed)[..., 2:], completed[..., 2:])


def test_given_positions_stay_finer_than_a_pixel_with_headings():
    layout = layout_with_headings()
    layout.first.copy_(torch.tensor([0.0, -0.14]))
    given = torch.tensor([[0.3, -0.2], [1.0, -1.0], [0.02, -0.14], [0.01, -0.15]])
    snapped = layout.snap(given)
    assert torch.equal(snapped[:3], given[:3])
    assert torch.equal(snapped[3], layout.first)


def test_labels_with_headings_are_learned_from_the_data():
    labels = labels_of(("red cube",), ("blue sphere",))
    positions = torch.zeros(2, NUM_LABELS, 4)
    positions[0, ICLEVR_LABELS.encode(("red cube",)).bool(), 2:] = torch.tensor([0.6, 0.8])
    layout = Layout(64, NUM_LABELS)
    layout.set_prior(fit_prior(labels, positions))
    assert torch.equal(layout.turning, ICLEVR_LABELS.encode(("red cube",)).bool())
