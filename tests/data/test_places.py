import torch

from iclevr_diffusion.data.places import FIRST, find_places
from iclevr_diffusion.data.synthetic import Synthetic
from iclevr_diffusion.labels import NUM_LABELS


def frame(*objects):
    """A gray picture with a square for each (label, column, row), and its labels."""
    image, labels = torch.full((3, 64, 64), 100, dtype=torch.uint8), torch.zeros(NUM_LABELS)
    for label, x, y in objects:
        image[:, y - 2 : y + 3, x - 2 : x + 3] = 200
        labels[label] += 1
    return image, labels


def places_of(*frames, sequences=None):
    images, labels = (torch.stack(parts) for parts in zip(*frames, strict=True))
    return find_places(images, labels, torch.tensor(sequences or [0] * len(frames)))


A, B, C = (0, 32, 27), (5, 10, 20), (9, 50, 40)


def pixel(place):
    return ((place + 1) * 32 - 0.5).round().int().tolist()


def test_each_frame_tells_where_the_new_object_stands():
    places = places_of(frame(A), frame(A, B), frame(A, B, C))
    assert torch.allclose(places[:, 0], torch.tensor(FIRST).expand(3, 2))
    assert pixel(places[1, 5]) == pixel(places[2, 5]) == [10, 20]
    assert pixel(places[2, 9]) == [50, 40]
    assert not places[0, 5].any()
    assert not places[2, 1].any()


def test_the_order_of_the_frames_does_not_matter():
    places = places_of(frame(A), frame(A, B), frame(C), sequences=[1, 1, 0])
    mixed = places_of(frame(A, B), frame(C), frame(A), sequences=[1, 0, 1])
    assert torch.equal(mixed, places[[1, 2, 0]])


def test_places_are_not_known_where_a_frame_is_missing():
    places = places_of(frame(A), frame(A, B, C))
    assert places[1, [0, 5, 9]].isnan().all()
    assert not places[1, 1].any()


def test_a_hidden_object_has_no_known_place():
    image, labels = frame(A)
    more = labels.clone()
    more[5] = 1
    places = places_of((image, labels), (image, more))
    assert places[1, 5].isnan().all()
    assert places[1, 0].isfinite().all()


def test_places_of_drawn_scenes_are_all_known_and_apart(tmp_path):
    source = Synthetic(20, cache=tmp_path)
    source.prepare()
    frames = source.frames()
    places = find_places(frames.images, frames.labels, frames.sequences)
    assert places.isfinite().all()
    assert places.abs().max() < 1
    triples = frames.labels.sum(1) == 3
    objects = places[triples][frames.labels[triples] > 0].view(-1, 3, 2)
    assert (torch.cdist(objects, objects) + torch.eye(3)).amin() > 0.1
