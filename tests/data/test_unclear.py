import json

import pytest
import torch

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NUM_LABELS
from iclevr_diffusion.data.synthetic import raycast
from iclevr_diffusion.data.synthetic.dataset import synthetic_frames
from iclevr_diffusion.data.synthetic.raycast import (
    CUBE,
    CYLINDER,
    ROUNDED_CUBE,
    SPHERE,
    SUPERQUADRIC,
    Solids,
)
from iclevr_diffusion.data.unclear import (
    NUM_OUTPUTS,
    corrupted_objects,
    read_unclear_images,
    shapes_in_between,
    write_unclear_images,
)
from iclevr_diffusion.training.evaluator import object_count
from iclevr_diffusion.utils.errors import UserError

UNCLEAR = {color: NUM_LABELS + index for index, color in enumerate(COLORS)}


def silhouette(shape, form):
    """Which of 40×40 rays towards a solid at the origin hit it, and the normals there."""
    solids = Solids(
        torch.tensor([shape]), torch.zeros(1, 2), torch.tensor([[0.8, 0.6]]), torch.tensor([form])
    )
    grid = torch.linspace(-0.25, 0.1, 40)
    u, v = torch.meshgrid(grid + 0.08, grid, indexing="xy")
    rays = raycast.camera_rays(u.reshape(1, -1), v.reshape(1, -1))
    hit, points, normals = raycast.first_hits(solids, rays)
    assert points.isfinite().all()
    return hit[0], normals[0]


@pytest.mark.parametrize(
    ("shape", "form", "like"),
    [
        (SUPERQUADRIC, [2.0, 2.0], SPHERE),
        (SUPERQUADRIC, [2.0, 60.0], CYLINDER),
        (SUPERQUADRIC, [60.0, 60.0], CUBE),
        (ROUNDED_CUBE, [0.02, 0.02], CUBE),
        (ROUNDED_CUBE, [1.0, 1.0], SPHERE),
    ],
)
def test_shapes_in_between_end_at_the_three_shapes(shape, form, like):
    hit, normals = silhouette(shape, form)
    expected, _ = silhouette(like, [1.0, 1.0])
    assert 100 < expected.sum() < 1500
    # Sizes differ by a few percent, as a cube's, a sphere's and a cylinder's do.
    assert (hit != expected).sum() < 0.12 * expected.sum()
    assert torch.allclose(normals[:, hit].norm(dim=0), torch.ones(int(hit.sum())), atol=1e-4)


def test_a_rounder_cube_covers_less():
    sizes = [int(silhouette(ROUNDED_CUBE, [r, r])[0].sum()) for r in (0.05, 0.4, 0.7, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_about_half_of_the_objects_are_in_between_and_labelled_so():
    frames = shapes_in_between(40, seed=3, image_size=16)
    last = frames.labels[2::3]
    assert frames.labels.shape == (120, NUM_OUTPUTS)
    assert torch.equal(last.sum(1), torch.full((40,), 3.0))
    share = last[:, NUM_LABELS:].sum() / last.sum()
    assert 0.35 < share < 0.65
    again = shapes_in_between(10, seed=3, image_size=16)
    assert torch.equal(again.images, frames.images[:30])
    assert not torch.equal(shapes_in_between(10, 4, 16).images, again.images)


@pytest.fixture(scope="module")
def clear_frames():
    return synthetic_frames(60, seed=5)


def test_one_object_of_each_copy_loses_its_shape_and_its_label(clear_frames):
    corrupted = corrupted_objects(clear_frames, 30, seed=0)
    assert 15 < len(corrupted) <= 30
    assert torch.equal(corrupted.labels[:, NUM_LABELS:].sum(1), torch.ones(len(corrupted)))
    names = {name: row for row, name in enumerate(clear_frames.names)}
    for image, labels, name in zip(
        corrupted.images, corrupted.labels, corrupted.names, strict=True
    ):
        row = names[name.split("_", 2)[2]]
        lost = clear_frames.labels[row] - labels[:NUM_LABELS]
        assert lost.sum() == 1
        assert lost.argmax() % len(COLORS) == labels[NUM_LABELS:].argmax()
        changed = (image.int() - clear_frames.images[row].int()).abs().amax(0) > 8
        assert 3 < changed.sum() < 0.25 * changed.numel()


def test_corrupted_objects_follow_from_the_seed(clear_frames):
    one, same, other = (corrupted_objects(clear_frames, 9, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert one.names != other.names


def test_frames_without_a_sequence_have_nothing_to_corrupt():
    alone = synthetic_frames(4, max_objects=1, image_size=16)
    assert len(corrupted_objects(alone, 5, seed=0)) == 0


def test_images_of_earlier_weights_survive_their_files(tmp_path):
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    entry = {"labels": ["red cube", "blue sphere"], "unclear": ["red cube"], "unknown": []}
    unknown = {"labels": ["red cube", "red sphere"], "unclear": [], "unknown": ["red sphere"]}
    write_unclear_images(tmp_path, "old", images, [entry] * 39 + [unknown])
    frames = read_unclear_images(tmp_path)
    assert torch.equal(frames.images, images)
    first, last = frames.labels[0], frames.labels[-1]
    index = ICLEVR_LABELS.index
    seen = first[index["red cube"]], first[UNCLEAR["red"]], first[index["blue sphere"]]
    assert seen == (0, 1, 1)
    assert (last[index["red cube"]], last[index["red sphere"]], last[UNCLEAR["red"]]) == (1, -1, -1)


def test_uncertain_objects_of_one_color_are_counted_one_by_one(tmp_path):
    names = ["red cube", "red sphere"]
    entries = [
        {"labels": names, "unclear": names, "unknown": []},
        {"labels": names, "unclear": ["red cube"], "unknown": ["red sphere"]},
        {"labels": [*names, "red cylinder"], "unclear": [], "unknown": names},
    ]
    write_unclear_images(tmp_path, "old", torch.zeros(3, 3, 64, 64, dtype=torch.uint8), entries)
    labels = read_unclear_images(tmp_path).labels
    assert labels[:, UNCLEAR["red"]].tolist() == [2, 1, -1]
    assert object_count(labels).tolist() == [2, 2, 3]


def test_a_folder_that_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no \.webp file there"):
        read_unclear_images(tmp_path)
    entry = {"labels": ["red cube"], "unclear": [], "unknown": []}
    write_unclear_images(tmp_path, "old", torch.zeros(3, 3, 64, 64, dtype=torch.uint8), [entry] * 3)
    (tmp_path / "old.json").write_text(json.dumps([entry] * 99))
    with pytest.raises(UserError, match="32 images for 99 entries"):
        read_unclear_images(tmp_path)
    (tmp_path / "old.json").write_text(json.dumps([{"labels": ["red cub"]}]))
    with pytest.raises(UserError, match="unknown label"):
        read_unclear_images(tmp_path)
