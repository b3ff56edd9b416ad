"""Colors, shapes, binding and number of objects, against a slow and obvious count."""

import math
from collections import Counter

import pytest
import torch

from iclevr_diffusion.data.conditions import crowded_conditions, numbered_conditions
from iclevr_diffusion.data.factorization import factorize
from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, SHAPES, Vocabulary
from iclevr_diffusion.evaluation.classifier import load_evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.factors import FACTOR_TITLES, FactorTotals, sides
from iclevr_diffusion.evaluation.rendered import figures_on_rendered

CENTER = torch.tensor([0.0, -0.14])
MAX_COUNT = 4


def random_images(count=400, seed=0, counts=True, unclear=True):
    """Images that often show what was asked for, or a near miss."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    sizes = torch.randint(1, 6, (count, 1), generator=generator)
    labels = (rand(count, 24).argsort(1) < sizes).float()
    scores = 0.1 + 0.8 * labels
    swapped = rand(count) < 0.3  # the colors of a red and a blue object, for instance
    scores[swapped] = scores[swapped].view(-1, 3, 8).roll(1, 1).reshape(-1, 24)
    flipped = rand(count, 24) < 0.01
    scores = torch.where(flipped, 1 - scores, scores)
    off = (rand(count) < 0.1).long()
    positions = (rand(count, 24, 2) * 2 - 1) * labels[..., None]
    positions[torch.arange(count), labels.argmax(1)] = CENTER
    output = ClassifierOutput(
        scores,
        labels.sum(1).long() + off if counts else None,
        torch.zeros(count, 1),
        (rand(count, 8) < 0.02).float() if unclear else None,
    )
    return output, labels, positions


def slowly(output, labels, positions):
    """The same figures, image by image, with names and multisets."""
    right, joint, both, binding = Counter(), 0, 0, 0
    shown, asked = Counter(), Counter()
    for row in range(len(labels)):
        wanted = [name for i, name in enumerate(ICLEVR_LABELS.names) if labels[row, i] == 1]
        seen = [name for i, name in enumerate(ICLEVR_LABELS.names) if output.scores[row, i] > 0.5]
        unclear = []
        if output.unclear is not None:
            unclear = [color for i, color in enumerate(COLORS) if output.unclear[row, i] > 0.5]
        color = Counter([n.split()[0] for n in seen] + unclear) == Counter(
            n.split()[0] for n in wanted
        )
        shape = Counter([n.split()[1] for n in seen] + ["unclear"] * len(unclear)) == Counter(
            n.split()[1] for n in wanted
        )
        count = len(seen) + len(unclear) == len(wanted)
        if output.counts is not None and len(wanted) < MAX_COUNT:
            count = int(output.counts[row]) == len(wanted)
        bound = set(seen) == set(wanted)
        right.update(color=color, shape=shape, count=count)
        both += color and shape
        binding += color and shape and bound
        joint += color and shape and bound and count
        for name in wanted:
            x, y = (positions[row, ICLEVR_LABELS.index[name]] - CENTER).tolist()
            where = ["center"] if max(abs(x), abs(y)) <= 0.02 else []
            where = where or ["left" if x < 0 else "right", "back" if y < 0 else "front"]
            groups = [*name.split(), str(len(wanted)), *where]
            asked.update(groups)
            shown.update(groups if name in seen else [])
    n = len(labels)
    result = {name: right[name] / n for name in ("color", "shape", "count")}
    result |= {"binding": binding / both, "joint": joint / n}
    result["product"] = math.prod(result[k] for k in ("color", "shape", "binding", "count"))
    result["joint_minus_product"] = result["joint"] - result["product"]
    return result, {name: shown[name] / asked[name] for name in asked}


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("unclear", [True, False])
def test_factors_are_those_of_a_slow_count(counts, unclear):
    output, labels, positions = random_images(counts=counts, unclear=unclear)
    totals = FactorTotals(ICLEVR_LABELS, MAX_COUNT, CENTER)
    for part in (slice(0, 150), slice(150, None)):
        of_part = ClassifierOutput(*(None if field is None else field[part] for field in output))
        totals.add(of_part, labels[part], positions[part])
    factors, groups = slowly(output, labels, positions)
    assert totals.factors() == pytest.approx(factors)
    assert totals.factors().keys() == FACTOR_TITLES.keys()
    found = {
        name: share for group in totals.shown_by_group().values() for name, share in group.items()
    }
    assert found == pytest.approx(groups)
    assert 0 < factors["binding"] < 1


def one_image(asked, seen, count=None, unclear=()):
    scores = ICLEVR_LABELS.encode(seen)[None] if seen else torch.zeros(1, 24)
    unclear = torch.tensor([[float(color in unclear) for color in COLORS]])
    counts = None if count is None else torch.tensor([count])
    totals = FactorTotals(ICLEVR_LABELS, MAX_COUNT)
    output = ClassifierOutput(scores, counts, torch.zeros(1, 1), unclear)
    totals.add(output, ICLEVR_LABELS.encode(asked)[None])
    return totals.factors()


def test_swapped_colors_are_a_matter_of_binding_alone():
    found = one_image(["red cube", "blue sphere"], ["blue cube", "red sphere"])
    assert found == {
        "color": 1,
        "shape": 1,
        "binding": 0,
        "count": 1,
        "product": 0,
        "joint": 0,
        "joint_minus_product": 0,
    }


def test_an_unclear_object_has_the_right_color_and_the_wrong_shape():
    found = one_image(["red cube"], [], unclear=["red"])
    assert (found["color"], found["shape"], found["joint"]) == (1, 0, 0)
    assert "binding" not in found


def test_a_second_object_of_a_label_is_a_matter_of_the_number():
    found = one_image(["red cube"], ["red cube"], count=2)
    assert (found["color"], found["shape"], found["binding"], found["count"]) == (1, 1, 1, 0)


def test_without_colors_and_shapes_there_are_no_factors_but_numbers():
    totals = FactorTotals(Vocabulary(["cat", "big dog", "bird"]), MAX_COUNT)
    scores = torch.tensor([[0.9, 0.1, 0.9]])
    totals.add(ClassifierOutput(scores, None, torch.zeros(1, 1)), torch.tensor([[1.0, 1.0, 0.0]]))
    assert totals.factors() == {}
    assert totals.shown_by_group() == {"number": {"2": 0.5}}
    assert totals.exact_by_number() == {"2": 0.0}


def test_labels_are_split_into_colors_and_shapes():
    parts = factorize(ICLEVR_LABELS)
    assert (parts.colors, parts.shapes) == (COLORS, SHAPES)
    index = ICLEVR_LABELS.index["brown cylinder"]
    assert COLORS[parts.color_of[index]] == "brown"
    assert SHAPES[parts.shape_of[index]] == "cylinder"
    for names in (["red cube", "blue sphere"], ["red cube", "blue cube"], ["a b", "c"]):
        assert factorize(Vocabulary(names)) is None


def test_every_object_is_at_the_center_or_on_two_sides():
    positions = torch.rand(50, 24, 2) * 2 - 1
    positions[:, 0] = CENTER
    marks = sides(positions, CENTER)
    assert marks["center"][:, 0].all()
    each = torch.stack([marks[name] for name in ("left", "right", "back", "front")]).sum(0)
    assert torch.equal(each, torch.where(marks["center"], 0, 2))


def test_numbered_conditions_are_sets_of_one_to_eight_labels():
    sets = numbered_conditions()
    assert [len(names) for names in sets] == [size for size in range(1, 9) for _ in range(16)]
    assert all(len(set(names)) == len(names) for names in sets)
    assert len(set(sets)) == len(sets)
    assert len(numbered_conditions(Vocabulary(["a", "b"]))) == 3
    assert {len(names) for names in crowded_conditions()} == {4, 5}


@pytest.mark.slow
def test_evaluators_see_most_of_four_and_of_eight_rendered_objects():
    evaluator = load_evaluator()
    four, eight = (figures_on_rendered([evaluator], number) for number in (4, 8))
    assert four.keys() == {"shown", "exact_match"}
    assert min(four["shown"], eight["shown"]) > 0.9
    assert four["exact_match"] > 0.5
