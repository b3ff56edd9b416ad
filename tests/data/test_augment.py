"""Augmented images: still images, each changed in its own way, and their labels still true."""

import pytest
import torch
from torch import Tensor

from iclevr_diffusion.data.augment import BRIGHTNESS, CONTRAST, SHIFT, TINT, _soften, augment
from iclevr_diffusion.utils.rng import keyed_generator

ROW, COLUMN, SIDE = 20, 12, 16  # of the square


def square(count: int, color: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Tensor:
    """Gray images with a square in their left half."""
    images = torch.zeros(count, 3, 64, 64)
    middle = images[:, :, ROW : ROW + SIDE, COLUMN : COLUMN + SIDE]
    middle.copy_(torch.tensor(color).view(3, 1, 1).expand_as(middle))
    return images


def noise(count: int, height: int = 64, width: int = 64) -> Tensor:
    """Images of the darkest and the brightest pixels only."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (count, 3, height, width), generator=generator) * 2.0 - 1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (32, 48)])
def test_images_keep_their_shape_and_range(height: int, width: int) -> None:
    images = noise(20, height, width)
    before = images.clone()
    result = augment(images, keyed_generator("test"))
    assert (result.shape, result.dtype) == (images.shape, torch.float32)
    assert result.abs().max() <= 1
    assert torch.equal(images, before)


def test_same_key_same_images_and_another_key_others() -> None:
    images = noise(8)
    first, again, other = (augment(images, keyed_generator("test", key)) for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_image_of_a_batch_is_augmented_in_its_own_way() -> None:
    results = augment(square(30), keyed_generator("test")).flatten(1)
    differences = (results[:, None] - results).abs().amax(2)
    assert (differences.fill_diagonal_(1) > 0.01).all()


def test_a_square_moves_at_most_so_many_pixels_or_to_its_mirror_image() -> None:
    results = augment(square(400), keyed_generator("test")).mean(1) > 0.5
    positions = torch.arange(64.0)
    rows = (results.sum(2) * positions).sum(1) / results.sum((1, 2))
    columns = (results.sum(1) * positions).sum(1) / results.sum((1, 2))
    mirrored = columns > 31.5
    columns = torch.where(mirrored, 63 - columns, columns)
    half = (SIDE - 1) / 2
    for moved in (rows - ROW - half, columns - COLUMN - half):
        assert moved.abs().max() < SHIFT + 0.5
        assert set(moved.round().int().tolist()) == set(range(-SHIFT, SHIFT + 1))
    assert 150 < mirrored.sum() < 250
    area = results.sum((1, 2)) / SIDE**2
    assert (area == 1).all()  # none is blurred or cut


@pytest.mark.parametrize("color", [(0.6, -0.7, -0.7), (-0.7, -0.2, 0.7), (0.8, 0.8, -0.7)])
def test_colours_stay_what_they_are(color: tuple[float, float, float]) -> None:
    results = augment(square(200, color), keyed_generator("test"))
    inner = slice(COLUMN + SHIFT + 2, COLUMN + SIDE - SHIFT - 2)
    rows = results[:, :, ROW + SHIFT + 2 : ROW + SIDE - SHIFT - 2]
    mirrored = results.flip(3)[:, :, ROW + SHIFT + 2 : ROW + SIDE - SHIFT - 2]
    asked = torch.tensor(color)
    patches = torch.stack([part[..., inner].mean((2, 3)) for part in (rows, mirrored)])
    error = (patches - asked).abs().amax(2).amin(0)
    assert error.max() < (CONTRAST + TINT) * asked.abs().max() + BRIGHTNESS + 0.1
    assert error.max() > 0.02


def test_some_edges_are_softened_and_none_more_than_a_reduction_that_averages_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("iclevr_diffusion.data.augment.NOISE", 0.0)
    images = torch.full((400, 3, 64, 64), -0.5)
    images[..., 32:] = 0.5
    steps = augment(images, keyed_generator("test", 0)).diff(dim=3).abs().mean((1, 2))
    share = steps.amax(1) / steps.sum(1)  # of an edge, between two columns
    assert 1 - 2 / 6 - 1e-4 < share.min() < 0.75
    assert 0.6 < (share > 0.999).float().mean() < 0.8


@pytest.mark.parametrize("color", [(0.9, 0.1, 0.1), (0.5, 0.5, 0.5)])
def test_softening_leaves_even_surfaces_as_they_are(color: tuple[float, float, float]) -> None:
    even = torch.tensor(color).view(1, 3, 1, 1).expand(20, 3, 64, 64)
    assert torch.allclose(_soften(even, torch.full((20, 1, 1, 1), 1 / 12)), even, atol=1e-6)
