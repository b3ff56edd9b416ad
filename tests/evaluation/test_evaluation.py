import math
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NUM_LABELS, Vocabulary
from iclevr_diffusion.data.synthetic.dataset import empty_floors, synthetic_frames
from iclevr_diffusion.data.types import Frames, to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.evaluation import metric_collection
from iclevr_diffusion.evaluation.classifier import (
    CHUNK,
    Evaluator,
    ObjectEvaluator,
    classify,
    classify_frames,
    save_evaluator,
)
from iclevr_diffusion.evaluation.classifier_networks import ResidualNet
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.distances import distances
from iclevr_diffusion.evaluation.evaluator_report import (
    evaluate_classifier,
    mistakes,
    noise_like,
    with_a_wrong_label,
)
from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics
from iclevr_diffusion.evaluation.plots import confusion_plot
from iclevr_diffusion.evaluation.score import score_list
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.statistics import Statistics, student_t, summarize

SIZE = 32
MEASURED = {"accuracy", "image_accuracy", "exact_match", "missing", "extra"}
CONDITIONS = [
    ("red cube",),
    ("gray sphere", "blue cylinder"),
    ("yellow cylinder", "red cube", "cyan sphere"),
]


def striped(labels, size=SIZE):
    """Black images with a white stripe for each label."""
    stripes = F.pad(2 * labels.clamp(max=1) - 1, (0, 32 - labels.shape[1]), value=-1.0)
    rows = stripes.repeat_interleave(size // 32, 1)
    return rows[:, None, :, None].expand(-1, 3, size, size)


class StripeEvaluator(Evaluator):
    """Reads the stripes of :func:`striped`, and counts them."""

    name = "the stripe evaluator"
    num_features = NUM_LABELS
    max_count = 24

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def classify(self, images):
        assert images.dtype == torch.float32
        assert images.shape[1:] == (3, 64, 64)
        stripes = images.unflatten(2, (32, 2)).mean((1, 3, 4))[:, :NUM_LABELS]
        scores = (self.gain * (stripes + 1) / 2).clamp(0, 1)
        return ClassifierOutput(scores, (scores > 0.5).sum(1), stripes)


class StripesNet:
    """Draws :func:`striped` images, the worse the more noise it lets in."""

    num_labels, takes_positions = NUM_LABELS, False

    def __init__(self, noise=0.0, blind_to=()):
        self.noise, self.batches = noise, []
        self.known = torch.ones(NUM_LABELS)
        self.known[[ICLEVR_LABELS.index[name] for name in blind_to]] = 0

    def __call__(self, x_t, timesteps, labels, positions=None):
        self.batches.append(len(x_t))
        stripes = striped(labels * self.known, x_t.shape[-1])
        return stripes + self.noise * x_t.mean((1, 3), keepdim=True)


class Network:
    """A function of (x_t, timesteps, labels) as a network that takes no positions."""

    takes_positions = False

    def __init__(self, function):
        self.function = function

    def __call__(self, x_t, timesteps, labels, positions=None):
        return self.function(x_t, timesteps, labels)


def score(net=None, conditions=CONDITIONS, seeds=1, evaluator=None, steps=3, **settings):
    denoiser = Denoiser(net or StripesNet(), NoiseSchedule(timesteps=50), find_prediction("sample"))
    draw = DenoisingPipeline(denoiser, Sampler("ddim", steps), (3, SIZE, SIZE))
    return score_list(draw, evaluator or StripeEvaluator(), conditions, seeds, **settings)


TABLE = {
    1: 12.7062,
    2: 4.30265,
    3: 3.18245,
    9: 2.26216,
    10: 2.22814,
    30: 2.04227,
    100: 1.98397,
}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_students_t_is_that_of_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=1e-4)


def test_one_value_has_no_interval():
    assert summarize([0.5]) == Statistics(0.5, None, None, [0.5])


def test_statistics_of_several_values():
    values = [0.5, 0.7, 0.9]
    result = summarize(values)
    half = 4.30265 * 0.2 / math.sqrt(3)
    assert result.mean == pytest.approx(0.7)
    assert result.std == pytest.approx(0.2)
    assert result.interval == pytest.approx((0.7 - half, 0.7 + half), abs=1e-5)
    assert result.per_seed == values
    assert summarize(values, 0.3, 0.8).interval == (0.3, 0.8)


def test_equal_values_have_no_deviation():
    result = summarize([0.75] * 4)
    assert (result.std, result.interval) == (0, (0.75, 0.75))


def test_perfect_images_have_perfect_scores():
    scored = score(seeds=2)
    perfect = {"accuracy": 1, "image_accuracy": 1, "exact_match": 1, "missing": 0, "extra": 0}
    assert scored.per_seed == [{**perfect, "count_accuracy": 1}] * 2
    assert scored.result.by_count == {"1": 1, "2": 1, "3": 1}
    assert scored.result.by_label == dict.fromkeys(
        {name for names in CONDITIONS for name in names}, 1
    )
    assert scored.wrong() == [False] * 3
    assert [set(names) for names in scored.shown] == [set(names) for names in CONDITIONS]
    assert scored.images.shape == (3, 3, SIZE, SIZE)
    assert scored.result.distances == {}
    assert scored.result.seconds_per_image > 0
    assert score().result.seconds_per_image is None  # of one draw, each step is read too


def test_a_missing_object_is_told_by_every_measure():
    scored = score(StripesNet(blind_to=["red cube"]))
    assert scored.wrong() == [True, False, True]
    assert scored.shown[0] == ()
    (draw,) = scored.per_seed
    assert draw["exact_match"] == pytest.approx(1 / 3)
    assert draw["missing"] == pytest.approx(2 / 3)
    assert draw["count_accuracy"] == pytest.approx(1 / 3)
    assert scored.result.by_label["red cube"] == 0
    assert scored.result.by_count == pytest.approx({"1": 0, "2": 1, "3": 2 / 3})
    assert scored.confusion.compute()[ICLEVR_LABELS.index["red cube"], -1] == 1


def test_each_seed_has_its_figures_and_its_noise():
    scored = score(StripesNet(noise=10), seeds=4)
    assert [draw.keys() for draw in scored.per_seed] == [MEASURED | {"count_accuracy"}] * 4
    assert len({draw["missing"] + 10 * draw["extra"] for draw in scored.per_seed}) > 1
    metrics = scored.result.metrics
    accuracies = [values["accuracy"] for values in scored.per_seed]
    assert metrics["accuracy"] == summarize(accuracies, 0, 1)
    assert scored.confusion.weight[:, 0].sum() == 4 * 6
    # As many labels in each draw: pooled over all draws is the mean of the draws.
    pooled = sum(scored.result.by_count[str(len(names))] * len(names) for names in CONDITIONS) / 6
    assert pooled == pytest.approx(metrics["accuracy"].mean)


def test_the_seed_determines_the_images_whatever_the_batches_and_the_number_of_seeds():
    net = StripesNet(noise=10)
    scored, again = score(net, seeds=3), score(net, seeds=3, batch_size=2)
    assert set(net.batches) == {3, 2, 1}
    assert scored.per_seed == again.per_seed == [*score(net, seeds=2).per_seed, scored.per_seed[2]]
    assert scored.result.by_step == again.result.by_step
    assert scored.shown == again.shown
    assert torch.equal(scored.images, again.images)


def test_equal_conditions_have_noise_of_their_own():
    images = score(StripesNet(noise=10), conditions=[("red cube",)] * 2).images
    assert not torch.equal(*images)


def test_a_image_keeps_its_noise_where_the_list_grows():
    net = StripesNet(noise=10)
    assert torch.equal(score(net, CONDITIONS[:2]).images, score(net).images[:2])


def test_accuracy_by_step_has_one_value_per_step_and_ends_with_that_of_the_first_seed():
    scored = score(StripesNet(noise=10), seeds=2, steps=5, batch_size=2)
    assert len(scored.result.by_step) == 5
    assert (
        scored.result.by_step[-1] == scored.result.by_step_x_t[-1] == scored.per_seed[0]["accuracy"]
    )


def test_accuracy_by_step_is_of_the_first_images_of_a_long_list(monkeypatch):
    seen = []

    class Counted(StripeEvaluator):
        def classify(self, images):
            seen.append(len(images))
            return super().classify(images)

    monkeypatch.setattr(metric_collection, "MOST_BY_STEP", 3)
    conditions = [("yellow cylinder",)] * 8
    scored = score(None, conditions, steps=1, evaluator=Counted(), batch_size=2)
    assert seen[:4] == [2, 2, 1, 1]  # x_0 and x_t of the first batches
    assert sum(seen) == 2 * 3 + len(conditions)
    assert len(scored.result.by_step) == 1


def test_accuracy_by_step_tells_when_the_objects_appear():
    def late(x_t, timesteps, labels):
        return striped(labels * (timesteps[:, None] < 30), x_t.shape[-1])

    # Before, all scores are equal, and the first label is the answer.
    assert score(Network(late), [("yellow cylinder",)], steps=3).result.by_step == [0, 0, 1]


def test_on_step_sees_the_first_seed_and_progress_counts_all():
    steps, told = [], []
    score(seeds=2, steps=2, batch_size=2, on_step=steps.append, progress=told.append)
    rows = [(step.number, step.rows.start, step.rows.stop) for step in steps]
    assert rows == [(0, 0, 2), (1, 0, 2), (0, 2, 3), (1, 2, 3)]
    assert told == [2, 1, 2, 1]


def test_distances_are_those_of_all_seeds_to_the_reference():
    reference = StripeEvaluator()(striped(ICLEVR_LABELS.encode_all(CONDITIONS))).features
    near = score(seeds=2, reference=reference).result.distances
    far = score(StripesNet(noise=10), seeds=2, reference=reference).result.distances
    assert near.keys() == far.keys() == {"frechet", "kernel"}
    assert all(near[name] < far[name] for name in near)


def test_an_evaluator_that_cannot_count_gives_no_count():
    class Blind(StripeEvaluator):
        max_count = 0

        def classify(self, images):
            return super().classify(images)._replace(counts=None)

    assert score(evaluator=Blind()).per_seed[0].keys() == MEASURED


def test_an_empty_list_and_no_seed_are_refused():
    with pytest.raises(ValueError, match="the condition list is empty"):
        score(conditions=[])
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        score(seeds=0)


def test_a_network_that_generates_nan_gets_no_figures():
    with pytest.raises(UserError, match="NaN"):
        score(Network(lambda x_t, timesteps, labels: x_t * math.nan))


@pytest.mark.parametrize("value", [math.nan, 1.001, -1.001, math.inf])
def test_pixels_that_are_nan_or_beyond_get_no_number(value):
    images = striped(ICLEVR_LABELS.encode_all(CONDITIONS)).clone()
    images[2, 1, 5, 7] = value
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        StripeEvaluator()(images)
    metrics = EvaluationMetrics(StripeEvaluator())
    metrics.update(images[:2], ICLEVR_LABELS.encode_all(CONDITIONS[:2]))
    with pytest.raises(ValueError, match=r"in \[-1, 1\]"):
        metrics.update(images, ICLEVR_LABELS.encode_all(CONDITIONS))
    assert metrics.per_label.weight.sum() == 3  # nothing of it was counted


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_images_of_another_size_are_resized(size):
    labels = ICLEVR_LABELS.encode_all(CONDITIONS)
    scores = StripeEvaluator()(striped(labels, size)).scores
    assert torch.equal(scores > 0.5, labels > 0.5)


def test_larger_images_are_averaged():
    board = (torch.arange(128)[:, None] + torch.arange(128)) % 2 * 2.0 - 1
    features = StripeEvaluator()(board.expand(1, 3, -1, -1)).features
    assert features.abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_every_float_type_are_read(dtype):
    labels = ICLEVR_LABELS.encode_all(CONDITIONS)
    assert torch.equal(StripeEvaluator()(striped(labels, 64).to(dtype)).scores, labels)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 3, 64, 64, dtype=torch.int64),
        torch.zeros(3, 64, 64),
        torch.zeros(2, 1, 64, 64),
        torch.zeros(2, 64, 64, 3),
    ],
    ids=lambda images: f"{images.dtype} {tuple(images.shape)}",
)
def test_what_is_no_float_image_is_refused(images):
    with pytest.raises(ValueError, match="takes float images"):
        StripeEvaluator()(images)


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1])
def test_any_number_of_images_is_read(count):
    labels = (torch.rand(count, NUM_LABELS) < 0.1).float()
    scores, counts, features, _ = classify(StripeEvaluator(), striped(labels))
    assert torch.equal(scores > 0.5, labels > 0.5)
    assert torch.equal(counts, labels.sum(1).long())
    assert features.shape == (count, NUM_LABELS)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"scores": torch.ones(2, 23)}, r"scores must be \(2, 24\), in \[0, 1\]; got \(2, 23\)"),
        ({"scores": torch.full((2, 24), 1.5)}, r"got \(2, 24\), in \[1\.5, 1\.5\]"),
        ({"scores": torch.full((2, 24), torch.nan)}, "scores must be"),
        ({"counts": None}, "counts must be None if max_count is 0, and only then"),
    ],
)
def test_an_output_that_is_not_as_promised_is_refused(monkeypatch, change, line):
    evaluator = StripeEvaluator()
    output = evaluator.classify(torch.zeros(2, 3, 64, 64))
    monkeypatch.setattr(evaluator, "classify", lambda images: output._replace(**change))
    with pytest.raises(ValueError, match=f"StripeEvaluator: .*{line}"):
        evaluator(torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize("size", [16, 64])
def test_own_evaluator_reads_no_image_at_all(tmp_path, size):
    # A process that has none of a short list's images.
    evaluator = ObjectEvaluator(save_evaluator(ResidualNet([4, 4, 8], 8), tmp_path / "tiny"))
    scores, counts, features, _ = evaluator(torch.zeros(0, 3, size, size))
    assert (scores.shape, counts.shape, features.shape) == ((0, NUM_LABELS), (0,), (0, 8))


def test_no_images_add_nothing_to_the_metrics():
    metrics = EvaluationMetrics(StripeEvaluator())
    images, labels = (
        striped(ICLEVR_LABELS.encode_all(CONDITIONS)),
        ICLEVR_LABELS.encode_all(CONDITIONS),
    )
    metrics.update(images, labels)
    before = metrics.compute()
    metrics.update(images[:0], labels[:0])
    assert metrics.compute() == before


def frames_of(label_rows):
    pixels = ((striped(label_rows, 64) + 1) * 127.5).to(torch.uint8)
    return Frames(pixels, label_rows, torch.arange(len(label_rows)), ["a"] * len(label_rows))


def random_labels(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(count, NUM_LABELS, generator=generator).argsort(1)
    sizes = torch.randint(1, 6, (count, 1), generator=generator)
    return (order < sizes).float()


def test_an_evaluator_is_scored_on_all_frames():
    frames = frames_of(random_labels(CHUNK + 10))
    figures = evaluate_classifier(StripeEvaluator(), frames)
    assert (figures["frames"], figures["accuracy"], figures["count_accuracy"]) == (CHUNK + 10, 1, 1)
    assert set(figures["by_count"]) == {"1", "2", "3", "4", "5"}
    wrong = evaluate_classifier(StripeEvaluator(), with_a_wrong_label(frames))
    assert (wrong["exact_match"], wrong["missing"], wrong["extra"]) == (0, 1, 1)
    assert wrong["accuracy"] < 0.8


def test_features_of_frames_are_those_the_evaluator_gives():
    frames = frames_of(random_labels(CHUNK + 10))
    expected = StripeEvaluator()(to_unit_range(frames.images)).features
    features = classify_frames(StripeEvaluator(), frames.images).features
    assert torch.equal(features, expected)
    assert not features.requires_grad


def test_mistakes_are_shown_up_to_so_many():
    frames = with_a_wrong_label(frames_of(random_labels(10)))
    all_ten, few = (
        mistakes(StripeEvaluator(), frames, "all"),
        mistakes(StripeEvaluator(), frames, "", 3),
    )
    assert few.height < all_ten.height
    assert few.width < all_ten.width


def test_where_there_are_no_mistakes_there_is_still_a_image():
    assert mistakes(StripeEvaluator(), frames_of(random_labels(10)), "none").height > 0


def copied(frames):
    return Frames(
        frames.images.clone(), frames.labels.clone(), frames.sequences.clone(), [*frames.names]
    )


def same(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.sequences, other.sequences)
        and one.names == other.names
    )


def test_wrong_labels_replace_exactly_one_and_leave_the_frames_alone():
    frames = synthetic_frames(20, image_size=16, max_objects=5)
    before = copied(frames)
    wrong = with_a_wrong_label(frames)
    change = wrong.labels - frames.labels
    assert torch.equal(change.clamp(min=0).sum(1), torch.ones(100))
    assert torch.equal(change.clamp(max=0).sum(1), -torch.ones(100))
    assert set(wrong.labels.unique().tolist()) == {0, 1}
    assert torch.equal(wrong.images, frames.images)
    assert same(frames, before)
    assert same(wrong, with_a_wrong_label(frames))
    added, removed = change.argmax(1), change.argmin(1)
    assert min(len(added.unique()), len(removed.unique())) > 15  # not always the same


def test_noise_keeps_the_labels_and_nothing_of_the_images():
    frames = empty_floors(8, image_size=16)
    before = copied(frames)
    noise = noise_like(frames)
    assert noise.images.dtype == torch.uint8
    assert noise.images.shape == frames.images.shape
    assert noise.images.float().mean().item() == pytest.approx(127.5, abs=5)
    assert {0, 255} < set(noise.images.flatten().tolist())
    assert torch.equal(noise.labels, frames.labels)
    assert same(frames, before)
    assert same(noise, noise_like(frames))


def test_one_image_has_no_distance():
    features = torch.randn(5, 4)
    assert distances(features[:1], features) == distances(features, features[:1]) == {}


def test_kernel_distance_of_halves_of_one_set_is_zero_on_average():
    values = []
    for seed in range(30):
        features = torch.randn(80, 4, generator=torch.Generator().manual_seed(seed))
        values.append(distances(*features.split(40))["kernel"])
    assert abs(statistics.fmean(values)) < 3 * statistics.stdev(values) / np.sqrt(30)
    assert min(values) < 0


class HalfBlindEvaluator(StripeEvaluator):
    """Never sees a red cube, and says that a red object has no clear shape."""

    def classify(self, images):
        output = super().classify(images)
        scores = output.scores.clone()
        unclear = torch.zeros(len(scores), len(COLORS))
        unclear[:, COLORS.index("red")] = scores[:, ICLEVR_LABELS.index["red cube"]]
        scores[:, ICLEVR_LABELS.index["red cube"]] = 0
        return output._replace(scores=scores, unclear=unclear)


def test_an_object_of_unclear_shape_is_missing_and_named():
    scored = score(evaluator=HalfBlindEvaluator())
    (draw,) = scored.per_seed
    assert scored.shown[0] == ("unclear red",)
    assert scored.wrong() == [True, False, True]
    assert draw["exact_match"] == pytest.approx(1 / 3)
    assert draw["missing"] == draw["unclear"] == pytest.approx(2 / 3)
    assert draw["extra"] == 0


def test_a_second_evaluator_is_reported_beside_and_changes_nothing():
    alone, both = score(seeds=2), score(seeds=2, second=HalfBlindEvaluator())
    assert alone.second_per_seed == []
    assert alone.result.second_evaluator == {}
    assert both.per_seed == alone.per_seed
    second = both.result.second_evaluator
    assert second.keys() == {"accuracy", "exact_match"}
    assert second["exact_match"].mean == pytest.approx(1 / 3)


def test_images_of_another_vocabulary_are_scored():
    class OtherShapes(StripeEvaluator):
        vocabulary = Vocabulary(["circle", "star", "ring"])

        def classify(self, images):
            output = super().classify(images)
            return output._replace(scores=output.scores[:, :3])

    conditions = [("star",), ("ring", "circle")]
    net = Network(lambda x_t, timesteps, labels: striped(labels, x_t.shape[-1]))
    scored = score(net, conditions, 1, OtherShapes())
    (values,) = scored.per_seed
    assert (values["exact_match"], values["count_accuracy"]) == (1, 1)
    assert scored.shown == [("star",), ("circle", "ring")]
    assert scored.result.by_label == {"circle": 1, "star": 1, "ring": 1}
    confusion = scored.confusion
    assert confusion.compute().shape == (3, 4)
    (axes,) = confusion_plot(confusion.total, confusion.weight, "", scored.vocabulary).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["circle", "star", "ring"]
