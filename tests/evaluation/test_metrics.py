import copy
import datetime
import itertools
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS
from iclevr_diffusion.evaluation.breakdowns import AccuracyPerCount, AccuracyPerLabel, Confusion
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.distances import FrechetDistance, KernelDistance
from iclevr_diffusion.evaluation.metrics import (
    METRICS,
    CountAccuracy,
    ExactMatch,
    ExtraObjects,
    ImageAccuracy,
    ImageMetric,
    LabelAccuracy,
    MissingObjects,
    UnclearObjects,
    register_metric,
)

# The slow metrics below take images as pairs: a list of scores, and the set of labels asked for.


def ratio(total, weight):
    return total / weight if weight else math.nan


def hits(row, wanted):
    best_first = sorted(range(len(row)), key=lambda label: (-row[label], label))
    return wanted & set(best_first[: len(wanted)])


def seen(row):
    return {label for label, score in enumerate(row) if score > 0.5}


def label_accuracy(images):
    found = sum(len(hits(row, wanted)) for row, wanted in images)
    return ratio(found, sum(len(wanted) for _, wanted in images))


def image_accuracy(images):
    shares = [len(hits(row, wanted)) / len(wanted) for row, wanted in images if wanted]
    return ratio(sum(shares), len(shares))


def accuracy_per_label(images):
    return [
        ratio(
            sum(label in hits(row, wanted) for row, wanted in images),
            sum(label in wanted for _, wanted in images),
        )
        for label in range(NUM_LABELS)
    ]


def accuracy_per_count(images):
    return [
        label_accuracy([(row, wanted) for row, wanted in images if len(wanted) == count])
        for count in range(NUM_LABELS + 1)
    ]


def exact_match(images):
    return ratio(sum(seen(row) == wanted for row, wanted in images), len(images))


def missing_objects(images):
    return ratio(sum(len(wanted - seen(row)) for row, wanted in images), len(images))


def extra_objects(images):
    return ratio(sum(len(seen(row) - wanted) for row, wanted in images), len(images))


def confusion(images):
    rows = []
    for label in range(NUM_LABELS):
        generated, asked = [0.0] * (NUM_LABELS + 1), 0
        for row, wanted in images:
            if label not in wanted:
                continue
            asked += 1
            extra = seen(row) - wanted
            if label in seen(row):
                generated[label] += 1
            elif not extra:
                generated[-1] += 1
            for other in extra if label not in seen(row) else ():
                generated[other] += 1 / len(extra)
        rows.append([ratio(share, asked) for share in generated])
    return rows


SLOW = {
    LabelAccuracy: label_accuracy,
    ImageAccuracy: image_accuracy,
    AccuracyPerLabel: accuracy_per_label,
    AccuracyPerCount: accuracy_per_count,
    ExactMatch: exact_match,
    MissingObjects: missing_objects,
    ExtraObjects: extra_objects,
    Confusion: confusion,
}


def output_of(scores, counts=None, unclear=None):
    return ClassifierOutput(scores, counts, scores, unclear)


def random_images(seed, count):
    """0 to 24 labels, some of them twice; scores with ties, many at one half, half of them good."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (count, NUM_LABELS), generator=generator) / 4
    labels = torch.zeros(count, NUM_LABELS)
    sizes = torch.tensor([0, 1, 2, 3, 5, NUM_LABELS])
    for row in labels:
        size = sizes[torch.randint(len(sizes), (), generator=generator)]
        row[torch.randperm(NUM_LABELS, generator=generator)[:size]] = 1
    good = torch.rand(count, 1, generator=generator) < 0.5
    scores = torch.where(good, (scores + labels) / 2, scores)
    return scores, labels * torch.randint(1, 3, labels.shape, generator=generator)


def as_pairs(scores, labels):
    wanted = [{label for label, value in enumerate(row) if value} for row in labels.tolist()]
    return list(zip(scores.tolist(), wanted, strict=True))


def nested_approx(value):
    return pytest.approx(np.array(value), nan_ok=True, rel=1e-5)


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_every_metric_equals_the_obvious_one(kind, seed, images, an_update):
    scores, labels = random_images(seed, images)
    metric = kind()
    for some, asked in zip(scores.split(an_update), labels.split(an_update), strict=True):
        metric.update(output_of(some), asked)
    assert metric.compute().numpy() == nested_approx(SLOW[kind](as_pairs(scores, labels)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1), st.integers(1, 9))
def test_count_accuracy_counts_two_of_one_label_as_two(pairs, an_update):
    counts = torch.tensor([count for count, _ in pairs])
    labels = torch.zeros(len(pairs), NUM_LABELS)
    for row, (_, asked) in zip(labels, pairs, strict=True):
        row[0], row[5] = asked - asked // 2, asked // 2
    metric, scores = CountAccuracy(), torch.zeros_like(labels)
    for some in torch.arange(len(pairs)).split(an_update):
        metric.update(output_of(scores[some], counts[some]), labels[some])
    right = sum(count == asked for count, asked in pairs)
    assert metric.compute().item() == pytest.approx(right / len(pairs))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_rows_of_the_confusion_sum_to_one_where_the_label_was_asked_for(seed, images):
    scores, labels = random_images(seed, images)
    metric = Confusion()
    metric.update(output_of(scores), labels)
    sums, asked = metric.compute().sum(1), (labels > 0).any(0)
    assert torch.allclose(sums[asked], torch.ones(int(asked.sum())))
    assert sums[~asked].isnan().all()


def one_image(asked, scores):
    labels, row = torch.zeros(1, NUM_LABELS), torch.zeros(1, NUM_LABELS)
    labels[0, [ICLEVR_LABELS.index[name] for name in asked]] = 1
    row[0, [ICLEVR_LABELS.index[name] for name in scores]] = torch.tensor([*scores.values()])
    return row, labels


def measured(kind, *images):
    metric = kind()
    for scores, labels in images:
        metric.update(output_of(scores), labels)
    return metric.compute()


def test_the_first_of_equal_scores_wins():
    tie = {"gray cube": 0.3, "red cube": 0.3}
    assert measured(LabelAccuracy, one_image(["gray cube"], tie)) == 1
    assert measured(LabelAccuracy, one_image(["red cube"], tie)) == 0


def test_pooled_and_image_accuracy_weigh_images_differently():
    right = one_image(["red cube"], {"red cube": 1.0})
    # Of the zeros, those of gray and red cube come first.
    wrong = one_image(["gray cube", "blue cube", "red cube"], {"cyan cube": 1.0})
    images = right, wrong
    assert measured(LabelAccuracy, *images) == pytest.approx(3 / 4)
    assert measured(ImageAccuracy, *images) == pytest.approx((1 + 2 / 3) / 2)


def test_a_score_of_exactly_one_half_shows_nothing():
    image = one_image(["red cube"], {"red cube": 0.5})
    assert measured(ExactMatch, image) == 0
    assert measured(MissingObjects, image) == 1
    assert measured(ExtraObjects, one_image([], {"red cube": 0.5})) == 0


def test_a_missing_label_is_shared_among_the_extra_ones():
    image = one_image(
        ["red cube", "blue cube"], {"blue cube": 1.0, "cyan cube": 1.0, "cyan sphere": 1.0}
    )
    table = measured(Confusion, image)
    red, blue = table[ICLEVR_LABELS.index["red cube"]], table[ICLEVR_LABELS.index["blue cube"]]
    assert red[ICLEVR_LABELS.index["cyan cube"]] == red[ICLEVR_LABELS.index["cyan sphere"]] == 0.5
    assert blue[ICLEVR_LABELS.index["blue cube"]] == 1


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("kind", [*SLOW, CountAccuracy], ids=lambda kind: kind.__name__)
def test_no_image_gives_nan_and_an_empty_update_adds_nothing(kind):
    assert kind().compute().isnan().all()
    scores, labels = random_images(3, 4)
    counts = scores.argmax(1)
    metric, emptied = kind(), kind()
    for some in (metric, emptied):
        some.update(output_of(scores, counts), labels)
    emptied.update(output_of(scores[:0], counts[:0]), labels[:0])
    assert torch.equal(emptied.compute().nan_to_num(-1), metric.compute().nan_to_num(-1))


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("value", [math.nan, -0.01, 1.01, math.inf])
def test_scores_that_are_nan_or_beyond_are_refused(kind, value):
    scores, labels = torch.full((2, NUM_LABELS), 0.5), torch.ones(2, NUM_LABELS)
    scores[1, 7] = value
    with pytest.raises(ValueError, match="NaN or beyond"):
        kind().update(output_of(scores), labels)


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("scores", "labels"), [((2, 24), (1, 24)), ((24,), (24,))])
def test_shapes_must_agree(kind, scores, labels):
    with pytest.raises(ValueError, match=r"are not both \(B, L\)"):
        kind().update(output_of(torch.zeros(scores)), torch.zeros(labels))


def random_features(seed, count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    turn = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return (mixed @ turn + torch.randn(4, generator=generator, dtype=torch.float64)).to(dtype)


def distance(kind, real, fake, an_update=100):
    metric = kind(real.shape[1])
    for features, is_real in ((real, True), (fake, False)):
        for part in features.split(an_update):
            metric.update(part, real=is_real)
    return metric.compute()


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(8, 30), st.integers(8, 30), st.integers(1, 30))
def test_frechet_distance_equals_its_formula(seed, reals, fakes, an_update):
    real, fake = random_features(seed, reals), random_features(seed + 1, fakes)
    one, two = np.cov(real.numpy().T), np.cov(fake.numpy().T)
    # tr √(C1 C2) = tr √(√C1 C2 √C1), and the latter is symmetric.
    mixed = root(root(one) @ two @ root(one))
    shift = real.mean(0) - fake.mean(0)
    expected = float(shift @ shift) + np.trace(one) + np.trace(two) - 2 * np.trace(mixed)
    assert float(distance(FrechetDistance, real, fake, an_update)) == pytest.approx(expected)


def slow_kernel_distance(real, fake):
    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(group):
        return sum(kernel(x, y) for x, y in itertools.permutations(group, 2))

    m, n = len(real), len(fake)
    between = sum(kernel(x, y) for x in real for y in fake)
    return within(real) / (m * (m - 1)) + within(fake) / (n * (n - 1)) - 2 * between / (m * n)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9), st.integers(1, 9))
def test_kernel_distance_equals_the_double_loop(seed, reals, fakes, an_update):
    real, fake = random_features(seed, reals), random_features(seed + 1, fakes)
    expected = slow_kernel_distance(real.tolist(), fake.tolist())
    assert float(distance(KernelDistance, real, fake, an_update)) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
@pytest.mark.parametrize(("reals", "fakes"), [(1, 5), (5, 1), (1, 1)])
def test_distance_of_fewer_than_two_images_is_nan(kind, reals, fakes):
    assert distance(kind, random_features(0, reals), random_features(1, fakes)).isnan()


def all_measured(images, real):
    """Every metric of some of 7 generated images, and of some of 9 real ones."""
    scores, labels = random_images(12, 7)
    counts = torch.tensor([0, 1, 2, 3, 5, 24, 2])
    values = {kind.__name__: measured(kind, (scores[images], labels[images])) for kind in SLOW}
    count_accuracy = CountAccuracy()
    count_accuracy.update(output_of(scores[images], counts[images]), labels[images])
    values["CountAccuracy"] = count_accuracy.compute()
    for kind in (FrechetDistance, KernelDistance):
        features = random_features(0, 9)[real], random_features(1, 7)[images]
        values[kind.__name__] = distance(kind, *features)
    return values


def measure_a_share(rank, folder):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting_point",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    try:
        shares = [(slice(4), slice(5)), (slice(4, None), slice(5, None))]
        torch.save(all_measured(*shares[rank]), folder / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_uneven_shares_equal_one(tmp_path):
    alone = all_measured(slice(None), slice(None))
    second = multiprocessing.get_context("spawn").Process(
        target=measure_a_share, args=(1, tmp_path)
    )
    second.start()
    measure_a_share(0, tmp_path)
    second.join(timeout=60)
    assert second.exitcode == 0
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name], value, equal_nan=True, msg=name)


def test_an_unclear_object_makes_an_image_not_exact():
    labels = ICLEVR_LABELS.encode_all([("red cube",), ("blue sphere",), ("cyan cube",)])
    unclear = torch.zeros(3, 8)
    unclear[1, 0] = 0.9  # an image that is exact otherwise
    scores = labels.clone()
    scores[2] = 0  # one that is not exact anyway counts once
    unclear[2, 3] = 0.9
    metric = ExactMatch()
    metric.update(output_of(scores, unclear=unclear), labels)
    assert metric.compute() == pytest.approx(1 / 3)
    metric = UnclearObjects()
    metric.update(output_of(scores, unclear=unclear), labels)
    metric.update(output_of(scores[:1], unclear=torch.zeros(1, 8)), labels[:1])
    assert metric.compute() == pytest.approx(2 / 4)


def test_images_with_more_objects_than_the_evaluator_counts_are_left_out():
    labels = torch.zeros(3, NUM_LABELS)
    for row, objects in zip(labels, (1, 5, 2), strict=True):
        row[:objects] = 1
    metric = CountAccuracy(max_count=5)
    metric.update(output_of(labels, torch.tensor([1, 5, 5])), labels)
    assert metric.compute() == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", SLOW, ids=lambda kind: kind.__name__)
def test_any_number_of_labels_is_measured(kind):
    scores, labels = random_images(1, 6)
    metric = kind(num_labels=7)
    metric.update(output_of(scores[:, :7]), labels[:, :7])
    value = metric.compute()
    padded = kind()
    padded.update(*(output_of(F.pad(scores[:, :7], (0, 17))), F.pad(labels[:, :7], (0, 17))))
    if kind is Confusion:  # the last column is that of nothing
        expected = padded.compute()[:7, [*range(7), -1]]
    else:
        expected = padded.compute()[: len(value)] if value.ndim else padded.compute()
    torch.testing.assert_close(value, expected, equal_nan=True)


def test_every_metric_describes_itself():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.title
        assert metric.range[0] < metric.range[1]
        assert isinstance(metric.higher_is_better, bool)
        assert f"{0.5:{metric.format}}"
    assert METRICS["missing"].heading() == "missing objects per image"


def test_names_of_metrics_are_identifiers_and_unique(monkeypatch):
    monkeypatch.setattr("iclevr_diffusion.evaluation.metrics.METRICS", copy.copy(METRICS))
    with pytest.raises(ValueError, match="must be an identifier, got 'a/b'"):
        register_metric(type("Sloped", (ImageMetric,), {"name": "a/b"}))
    with pytest.raises(ValueError, match="there is another metric named accuracy"):
        register_metric(type("Other", (ImageMetric,), {"name": "accuracy"}))
