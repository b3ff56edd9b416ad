"""The synthetic frames: the same from the same seed, and what their labels say."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, NAMES, NUM_LABELS
from iclevr_diffusion.data.synthetic import raycast
from iclevr_diffusion.data.synthetic.camera import EYE
from iclevr_diffusion.data.synthetic.dataset import Synthetic, empty_floors, synthetic_frames
from iclevr_diffusion.data.synthetic.render import ALBEDO, render
from iclevr_diffusion.data.synthetic.scenes import Scenes, sample_scenes, uniform


def single(shape: int, color: str, position: tuple[float, float] = (0.0, 0.0)) -> Scenes:
    """One scene of one object, under the lamps of scene 0."""
    solids = raycast.Solids(
        torch.tensor([shape]),
        torch.tensor([position]),
        torch.tensor([[1.0, 0.0]]),
        torch.ones(1, 2),
    )
    lamps = sample_scenes(0, torch.arange(1), 1).lamps
    return Scenes(solids, torch.tensor([[COLORS.index(color)]]), lamps)


def object_mask(shape: int, position: tuple[float, float] = (0.0, 0.0), size: int = 64) -> Tensor:
    """Where an image of a green object is clearly green, bool (size, size)."""
    red, green, _ = render(single(shape, "green", position), size)[0, 0].int()
    return green - red > 15


def extent(mask: Tensor) -> tuple[float, float, int, int]:
    """Middle x, middle y, width and height of a mask, in pixels."""
    rows, columns = mask.nonzero().unbind(1)
    left, right = int(columns.min()), int(columns.max()) + 1
    top, bottom = int(rows.min()), int(rows.max()) + 1
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def test_same_seed_same_frames_on_any_batch_size() -> None:
    one, seven, all_at_once = (
        synthetic_frames(9, seed=3, batch_size=size).images for size in (1, 7, 32)
    )
    assert torch.equal(one, seven)
    assert torch.equal(one, all_at_once)


def test_a_sequence_depends_on_seed_and_number_only() -> None:
    few, many = synthetic_frames(4, seed=1), synthetic_frames(40, seed=1)
    assert torch.equal(few.images, many.images[:12])
    assert torch.equal(few.labels, many.labels[:12])
    assert few.names == many.names[:12]


def test_another_seed_gives_other_frames() -> None:
    assert not torch.equal(synthetic_frames(2, seed=0).labels, synthetic_frames(2, seed=1).labels)


@pytest.mark.parametrize("max_objects", [1, 3, 5])
def test_sequences_are_cumulative(max_objects: int) -> None:
    frames = synthetic_frames(20, max_objects=max_objects)
    labels = frames.labels.view(20, max_objects, NUM_LABELS)
    assert torch.equal(labels.sum(2), torch.arange(1.0, max_objects + 1).expand(20, -1))
    assert (labels.diff(dim=1) >= 0).all()
    assert torch.equal(frames.sequences, torch.arange(20).repeat_interleave(max_objects))
    assert frames.names[max_objects - 1] == f"synthetic_000000_{max_objects - 1}.png"


def test_a_step_changes_only_the_surroundings_of_the_new_object() -> None:
    images = synthetic_frames(30).images.view(30, 3, 3, 64, 64).int()
    changed = (images.diff(dim=1).abs().amax(2) > 20).float().mean((2, 3))
    assert (changed > 0.003).all()
    assert (changed < 0.15).all()


def test_first_object_is_at_the_fixed_position() -> None:
    for shape in (raycast.CUBE, raycast.SPHERE, raycast.CYLINDER):
        x, y, width, height = extent(object_mask(shape))
        assert abs(x - 32) <= 1
        assert abs(y - 27.5) <= 1.5
        assert 7 <= width <= 10
        assert 9 <= height <= 15


def test_nearer_objects_are_larger() -> None:
    away = torch.tensor(EYE[:2]) / torch.tensor(EYE[:2]).norm()
    for shape in (raycast.CUBE, raycast.SPHERE, raycast.CYLINDER):
        positions = [tuple((away * reach).tolist()) for reach in (-3.0, 0.0, 3.0)]
        boxes = [extent(object_mask(shape, position)) for position in positions]
        middles, heights = [box[1] for box in boxes], [box[3] for box in boxes]
        assert middles == sorted(middles)
        assert heights == sorted(set(heights))


def test_a_sphere_is_squashed_to_a_tall_ellipse() -> None:
    _, _, width, height = extent(object_mask(raycast.SPHERE, size=256))
    assert height / width == pytest.approx(4 / 3, rel=0.06)


@pytest.mark.parametrize("color", COLORS)
def test_colours_match_their_names(color: str) -> None:
    albedo = torch.tensor(ALBEDO[COLORS.index(color)]).float()
    for shape in (raycast.CUBE, raycast.SPHERE, raycast.CYLINDER):
        patch = render(single(shape, color), 64)[0, 0, :, 26:31, 30:34].float().mean((1, 2))
        if color == "gray":
            assert patch.max() - patch.min() < 8
        else:
            assert torch.corrcoef(torch.stack((patch, albedo)))[0, 1] > 0.95


def test_a_nearer_object_hides_a_farther_one() -> None:
    away = torch.tensor(EYE[:2]) / torch.tensor(EYE[:2]).norm()
    position = torch.stack((torch.zeros(2), away * 1.4))
    heading = torch.tensor([[1.0, 0.0]]).expand(2, -1)
    lamps = sample_scenes(0, torch.arange(1), 1).lamps
    images = []
    for order in ([0, 1], [1, 0]):  # whichever comes first
        solids = raycast.Solids(
            torch.full((2,), raycast.CUBE), position[order], heading, torch.ones(2, 2)
        )
        color = torch.tensor([[COLORS.index("red"), COLORS.index("green")]])[:, order]
        images.append(render(Scenes(solids, color, lamps), 64)[0, -1])
    assert (images[0].int() - images[1].int()).abs().max() <= 1
    hidden_row = extent(object_mask(raycast.CUBE))[1]
    red, green, _ = images[0][:, round(hidden_row) + 4, 32].int()
    assert green > red


def test_objects_throw_shadows_on_the_floor() -> None:
    empty = render(single(raycast.SPHERE, "red", (40.0, 0.0)), 64)[0, 0].int()
    drawn = render(single(raycast.SPHERE, "red"), 64)[0, 0].int()
    below_left = (slice(None), slice(33, 37), slice(25, 31))
    assert (empty - drawn)[below_left].float().mean() > 2


def test_objects_never_touch() -> None:
    scenes = sample_scenes(0, torch.arange(2000), 5)
    position = scenes.solids.position.view(2000, 5, 2)
    distance = torch.cdist(position, position) + 10 * torch.eye(5)
    assert distance.min() > 2 * max(raycast.HALF_WIDTH) * 2**0.5
    assert position.abs().max() <= 3


def test_all_labels_are_about_equally_frequent() -> None:
    labels = sample_scenes(0, torch.arange(4000), 3).labels()
    share = torch.bincount(labels.flatten(), minlength=NUM_LABELS) / 4000
    assert ((share - 3 / NUM_LABELS).abs() < 0.03).all()
    assert all(len(set(row)) == 3 for row in labels.tolist())


def test_random_numbers_are_uniform_and_unrelated_between_streams() -> None:
    a, b = (uniform(0, stream, torch.arange(1000), 8) for stream in (0, 1))
    assert a.min() >= 0
    assert a.max() < 1
    assert a.mean() == pytest.approx(0.5, abs=0.02)
    assert a.std() == pytest.approx(12**-0.5, abs=0.01)
    assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.05


@pytest.mark.parametrize("size", [16, 32, 128])
def test_other_sizes_show_the_same_scene(size: int) -> None:
    small, large = (synthetic_frames(2, image_size=s).images.float() for s in (size, 64))
    assert small.shape == (6, 3, size, size)
    coarse = torch.nn.functional.adaptive_avg_pool2d
    assert (coarse(small, 8) - coarse(large, 8)).abs().mean() < 4


def test_frames_are_in_the_range_of_real_ones() -> None:
    images = synthetic_frames(60).images.float()
    assert images.mean() / 127.5 - 1 == pytest.approx(-0.035, abs=0.03)
    assert images.std() / 127.5 == pytest.approx(0.145, abs=0.02)


def test_source_gives_the_same_frames_from_its_cache(tmp_path: Path) -> None:
    source = Synthetic(sequences=4, seed=7, cache=tmp_path)
    source.prepare_data()
    written = list(tmp_path.glob("*.npy"))
    assert len(written) == 1
    stamp = written[0].stat().st_mtime_ns
    frames, drawn = source.load_frames(), synthetic_frames(4, seed=7)
    assert torch.equal(frames.images, drawn.images)
    assert torch.equal(frames.labels, drawn.labels)
    assert frames.names == drawn.names
    assert written[0].stat().st_mtime_ns == stamp
    Synthetic(sequences=4, seed=8, cache=tmp_path).prepare_data()
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_conditions_cover_every_label_twice(tmp_path: Path) -> None:
    conditions = Synthetic(sequences=1, cache=tmp_path).conditions()
    sizes = {name: [len(s) for s in sets] for name, sets in conditions.items()}
    assert sizes == {"test": [1] * 6 + [2] * 12 + [3] * 14, "new_test": [2] * 12 + [3] * 20}
    for sets in conditions.values():
        flat = [name for names in sets for name in names]
        assert all(flat.count(name) >= 2 for name in NAMES)
        assert len({frozenset(names) for names in sets}) == 32
    json.dumps(conditions)


@pytest.mark.parametrize("wrong", [{"sequences": 0}, {"sequences": 1, "image_size": 63}])
def test_a_wrong_setting_is_a_users_mistake(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^(sequences|image_size)"):
        Synthetic(**wrong, cache=tmp_path)


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="max_objects"):
        synthetic_frames(1, max_objects=6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_renders_the_same_scenes() -> None:
    cpu, gpu = (synthetic_frames(8, device=device).images.int() for device in ("cpu", "cuda"))
    assert (cpu - gpu).abs().float().mean() < 0.1


def test_labels_may_come_twice_and_are_counted():
    frames = synthetic_frames(60, max_objects=5, distinct=False, image_size=16)
    assert (frames.labels.sum(1).view(60, 5) == torch.arange(1, 6)).all()
    assert (frames.labels.max(1).values >= 2).sum() > 30
    assert synthetic_frames(60, max_objects=5, image_size=16).labels.max() == 1


def test_every_other_huddled_scene_hides_its_own_objects():
    index = torch.arange(200)
    apart = sample_scenes(0, index, 4).solids.position.view(200, 4, 2)
    huddled = sample_scenes(0, index, 4, huddled=True).solids.position.view(200, 4, 2)
    assert torch.equal(huddled[::2], apart[::2])
    assert huddled.abs().max() <= 3
    nearest = [
        torch.cdist(scenes, scenes).add(10 * torch.eye(4)).flatten(1).amin(1)
        for scenes in (apart[1::2], huddled[1::2])
    ]
    assert nearest[1].median() < 2.0 < nearest[0].median()
    assert (nearest[1] > 1.25).float().mean() > 0.95  # solids do not run into each other


def test_empty_floors_are_floors_without_objects():
    floors = empty_floors(3, image_size=32)
    assert floors.images.shape == (3, 3, 32, 32)
    assert floors.labels.sum() == 0
    same_scenes = synthetic_frames(3, image_size=32, max_objects=1)
    differ = (floors.images != same_scenes.images).any(1).float().mean((1, 2))
    assert ((differ > 0.01) & (differ < 0.4)).all()  # the object and its shadow only
