import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iclevr_diffusion.metrics import LabelAccuracy


def slow_accuracy(scores, labels):
    hits = total = 0
    for row, true in zip(scores.tolist(), labels.tolist(), strict=True):
        wanted = {index for index, value in enumerate(true) if value}
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        hits += len(wanted & set(order[: len(wanted)]))
        total += len(wanted)
    return hits / total


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 24))
def test_pooled_accuracy_equals_the_obvious_one(seed, pictures, most_labels):
    generator = torch.Generator().manual_seed(seed)
    # Few distinct scores, so that there are ties.
    scores = torch.randint(0, 6, (pictures, 24), generator=generator).float()
    labels = torch.zeros(pictures, 24)
    for row in labels:
        count = int(torch.randint(1, most_labels + 1, (1,), generator=generator))
        row[torch.randperm(24, generator=generator)[:count]] = 1
    metric = LabelAccuracy()
    for part in range(pictures):
        metric.update(scores[part : part + 1], labels[part : part + 1])
    assert metric.compute().item() == pytest.approx(slow_accuracy(scores, labels))


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        LabelAccuracy().update(torch.full((1, 24), float("nan")), torch.ones(1, 24))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        LabelAccuracy().update(torch.zeros(2, 24), torch.zeros(1, 24))
