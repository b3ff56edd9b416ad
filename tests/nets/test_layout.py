import pytest
import torch

from iclevr_diffusion.labels import NUM_LABELS, encode
from iclevr_diffusion.nets.layout import (
    CLEARANCE,
    Layout,
    encoded,
    painted,
    split_places,
    with_places,
)

RING = torch.tensor([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, -0.7]])


def generators(count, seed=0):
    return [torch.Generator().manual_seed(100 * seed + i) for i in range(count)]


def fitted():
    """A layout of frames whose first object stands at (0, -.14), others on a ring."""
    labels, places = torch.zeros(8, NUM_LABELS), torch.zeros(8, NUM_LABELS, 2)
    labels[:, 3] = 1
    places[:, 3] = torch.tensor([0.0, -0.14])
    labels[4:, 7] = 1
    places[4:, 7] = RING
    layout = Layout(64)
    layout.fit(labels, places)
    return layout


def test_first_objects_and_others_are_learned_apart():
    layout = fitted()
    assert torch.allclose(layout.first, torch.tensor([0.0, -0.14]))
    assert layout.density.sum() == pytest.approx(1)
    assert layout.density.nonzero().tolist() == [[2, 8], [8, 4], [8, 12], [12, 8]]


def test_unknown_places_are_not_learned_from():
    layout, plain = Layout(64), Layout(64)
    labels = torch.zeros(2, NUM_LABELS)
    labels[:, 0] = 1
    layout.fit(labels, torch.full((2, NUM_LABELS, 2), torch.nan))
    assert torch.equal(layout.density, plain.density)
    assert torch.equal(layout.first, plain.first)


def test_one_object_stands_first_and_the_others_where_others_do():
    labels = torch.stack([encode(["red cube", "blue sphere", "gray cylinder"])] * 20)
    places = fitted().draw(labels, generators(20))
    assert (places[labels == 0] == 0).all()
    middle = torch.tensor([0.0, -0.14])
    is_first = (places[labels > 0].view(20, 3, 2) - middle).abs().amax(2) < 1e-6
    assert (is_first.sum(1) == 1).all()
    assert is_first.any(0).all()  # any of the labels may be first
    others = places[labels > 0].view(20, 3, 2)[~is_first]
    assert (torch.cdist(others, RING).amin(1) < 0.18).all()  # a cell is .125 wide


def test_objects_stand_clear_of_one_another():
    labels = torch.stack([encode(["red cube", "blue sphere", "gray cylinder", "red sphere"])] * 50)
    places = Layout(64).draw(labels, generators(50))[labels > 0].view(50, 4, 2)
    distances = torch.cdist(places, places) + 9 * torch.eye(4)
    assert distances.amin() >= CLEARANCE


def test_drawn_places_are_pixels_as_those_of_frames_are():
    labels = torch.stack([encode(["red cube", "blue sphere", "gray cylinder"])] * 20)
    pixels = (Layout(64).draw(labels, generators(20))[labels > 0] + 1) * 32 - 0.5
    first = (pixels == 31.5).all(1)  # this layout's first objects stand in the middle
    assert first.sum() == 20
    assert torch.allclose(pixels[~first], pixels[~first].round(), atol=1e-4)


def test_crowds_find_the_clearest_places_there_are():
    labels = torch.ones(2, NUM_LABELS)
    places = fitted().draw(labels, generators(2))
    assert places.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_density_that_is_none_is_refused(value):
    layout = Layout(64)
    layout.check()
    layout.density.fill_(value)
    with pytest.raises(ValueError, match=r"layout\.density is no density"):
        layout.check()


def test_a_layout_follows_from_its_generator_alone():
    labels = torch.stack([encode(["red cube", "blue sphere"]), encode(["gray cube", "red cube"])])
    both = fitted().draw(labels, generators(2))
    second = fitted().draw(labels[1:], generators(2)[1:])
    assert torch.equal(both[1:], second)


def test_labels_and_places_come_apart_again():
    labels, places = torch.rand(2, NUM_LABELS), torch.rand(2, NUM_LABELS, 2)
    back = split_places(with_places(labels, places))
    assert torch.equal(back[0], labels)
    assert torch.equal(back[1], places)


def test_labels_without_places_are_refused():
    with pytest.raises(ValueError, match="takes labels with places, 72 numbers a picture, not 24"):
        split_places(torch.zeros(2, NUM_LABELS))


def test_a_blob_is_painted_for_colour_and_shape():
    labels, places = encode(["red sphere"])[None], torch.zeros(1, NUM_LABELS, 2)
    places[labels > 0] = torch.tensor([0.5, -0.25])
    maps = painted(labels, places, 32)
    assert maps.shape == (1, 11, 32, 32)
    shown = [int(i) for i in maps.flatten(2).amax(2)[0].nonzero().flatten()]
    assert shown == [1, 8 + 1]  # red, sphere
    peak = maps[0, 1].flatten().argmax()
    assert (int(peak) // 32, int(peak) % 32) in {(11, 23), (11, 24), (12, 23), (12, 24)}
    assert maps.max() <= 1


def test_no_labels_paint_nothing():
    nothing = torch.zeros(1, NUM_LABELS)
    assert not painted(nothing, torch.zeros(1, NUM_LABELS, 2), 16).any()


def test_places_are_encoded_by_waves():
    places = torch.tensor([[0.0, 0.0], [0.3, -0.2]])
    waves = encoded(places)
    assert waves.shape == (2, 34)
    assert torch.equal(waves[:, :2], places)
    assert not torch.allclose(waves[0, 2:], waves[1, 2:])
