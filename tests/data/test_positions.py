import torch

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.positions import FIRST, find_positions
from iclevr_diffusion.data.synthetic.dataset import Synthetic


def frame(*objects):
    """A gray image with a square for each (label, column, row), and its labels."""
    image, labels = torch.full((3, 64, 64), 100, dtype=torch.uint8), torch.zeros(NUM_LABELS)
    for label, x, y in objects:
        image[:, y - 2 : y + 3, x - 2 : x + 3] = 200
        labels[label] += 1
    return image, labels


def positions_of(*frames, sequences=None):
    images, labels = (torch.stack(parts) for parts in zip(*frames, strict=True))
    return find_positions(images, labels, torch.tensor(sequences or [0] * len(frames)))


A, B, C = (0, 32, 27), (5, 10, 20), (9, 50, 40)


def pixel(position):
    return ((position + 1) * 32 - 0.5).round().int().tolist()


def test_each_frame_shows_the_position_of_its_new_object():
    positions = positions_of(frame(A), frame(A, B), frame(A, B, C))
    assert torch.allclose(positions[:, 0], torch.tensor(FIRST).expand(3, 2))
    assert pixel(positions[1, 5]) == pixel(positions[2, 5]) == [10, 20]
    assert pixel(positions[2, 9]) == [50, 40]
    assert not positions[0, 5].any()
    assert not positions[2, 1].any()


def test_the_order_of_the_frames_does_not_matter():
    positions = positions_of(frame(A), frame(A, B), frame(C), sequences=[1, 1, 0])
    mixed = positions_of(frame(A, B), frame(C), frame(A), sequences=[1, 0, 1])
    assert torch.equal(mixed, positions[[1, 2, 0]])


def test_positions_are_not_known_where_a_frame_is_missing():
    positions = positions_of(frame(A), frame(A, B, C))
    assert positions[1, [0, 5, 9]].isnan().all()
    assert not positions[1, 1].any()


def test_a_hidden_object_has_no_known_position():
    image, labels = frame(A)
    more = labels.clone()
    more[5] = 1
    positions = positions_of((image, labels), (image, more))
    assert positions[1, 5].isnan().all()
    assert positions[1, 0].isfinite().all()


def test_positions_in_synthetic_scenes_are_all_known_and_apart(tmp_path):
    source = Synthetic(20, cache=tmp_path)
    source.prepare_data()
    frames = source.load_frames()
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    assert positions.isfinite().all()
    assert positions.abs().max() < 1
    triples = frames.labels.sum(1) == 3
    objects = positions[triples][frames.labels[triples] > 0].view(-1, 3, 2)
    assert (torch.cdist(objects, objects) + torch.eye(3)).amin() > 0.1
