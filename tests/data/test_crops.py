import pytest
import torch

from iclevr_diffusion.data.crops import JITTER, Crops, cut
from iclevr_diffusion.data.labels import NUM_LABELS


def uniform(count=2000):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(0))


def frames(count=2000):
    labels = torch.zeros(count, NUM_LABELS)
    labels[:, 2] = labels[:, 7] = 1
    positions = torch.zeros(count, NUM_LABELS, 2)
    positions[:, 2] = torch.tensor([0.25, -0.5])  # column 40, row 16 of 64
    positions[:, 7] = torch.tensor([-0.9, 0.9])  # near the lower left corner
    return labels, positions


def test_crops_anywhere_reach_every_corner_of_the_frame():
    corners = Crops(32, near_objects=0.0).corners(*frames(), 64, uniform())
    assert corners.amin(0).tolist() == [0, 0]
    assert corners.amax(0).tolist() == [32, 32]


def test_crops_near_objects_are_about_each_of_them_alike():
    corners = Crops(32, near_objects=1.0).corners(*frames(), 64, uniform())
    first = torch.tensor([16 - 16, 40 - 16])
    is_first = ((corners - first).abs() <= JITTER).all(1)
    is_other = (corners[:, 0] > 20) & (corners[:, 1] == 0)
    assert (is_first ^ is_other).all()
    assert is_first.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert ((corners >= 0) & (corners <= 32)).all()


def test_half_the_crops_are_near_an_object():
    labels, positions = frames()
    positions[:, 7] = positions[:, 2]
    corners = Crops(32).corners(labels, positions, 64, uniform())
    is_near = (corners[:, 0] <= JITTER) & ((corners[:, 1] - 24).abs() <= JITTER)
    by_chance = (9 / 33) * (17 / 33)
    assert is_near.float().mean().item() == pytest.approx(0.5 + 0.5 * by_chance, abs=0.04)


def test_a_frame_without_known_objects_is_cropped_anywhere():
    labels, positions = frames()
    labels[:1000] = 0
    positions[1000:] = torch.nan
    corners = Crops(32, near_objects=1.0).corners(labels, positions, 64, uniform())
    assert torch.equal(corners, Crops(32, 0.0).corners(labels, positions, 64, uniform()))
    assert torch.equal(corners, Crops(32, near_objects=1.0).corners(labels, None, 64, uniform()))


def test_crops_are_cut_where_their_corners_are():
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    corners = torch.tensor([[0, 2], [3, 1]])
    first, second = cut(images, corners, 3)
    assert torch.equal(first, images[0, :, 0:3, 2:5])
    assert torch.equal(second, images[1, :, 3:6, 1:4])
