"""The objects that evaluators see in an image, label by label."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, LabelSet, Vocabulary
from iclevr_diffusion.evaluation.classifier import Evaluator, second_evaluator
from iclevr_diffusion.evaluation.classifier_output import THRESHOLD, ClassifierOutput

SEEN, UNCLEAR, MISSING, EXTRA, ABSENT = "seen", "unclear", "missing", "not requested", "–"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One label.

    Attributes:
        label: Its name, or ``red, no clear shape`` for a color.
        verdicts: One per evaluator: ``seen``, ``unclear`` (an object of that color, whose shape it
            cannot tell), ``missing``, ``not requested`` (seen, but not requested) or ``–``.
        scores: One per evaluator, in [0, 1].
    """

    label: str
    verdicts: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Findings:
    """The objects that each evaluator sees.

    Attributes:
        evaluators: Their names.
        rows: The requested labels first, then what else any of them sees.
        counts: The number of objects that each counts; None if it does not count.
    """

    evaluators: tuple[str, ...]
    rows: tuple[Row, ...]
    counts: tuple[int | None, ...]


def all_evaluators(evaluator: Evaluator, vocabulary: Vocabulary) -> list[Evaluator]:
    """Return an evaluator and the packaged second one; none, if they classify other labels."""
    if evaluator.vocabulary != vocabulary:
        log.warning(
            "%s does not classify the labels of these weights: images are shown without results;"
            " name one that does with evaluator._target_=…",
            evaluator.name,
        )
        return []
    second = second_evaluator(vocabulary)
    return [evaluator] if second is None else [evaluator, second]


def find(image: Tensor, requested: LabelSet, evaluators: Sequence[Evaluator]) -> Findings:
    """Classify an image.

    Args:
        image: float32, (1, C, H, W), in [-1, 1].
        requested: The labels.
        evaluators: All for one vocabulary; may be empty.
    """
    outputs = [evaluator(image.to(evaluator.device)) for evaluator in evaluators]
    vocabulary = evaluators[0].vocabulary if evaluators else ICLEVR_LABELS
    others = [
        name
        for index, name in enumerate(vocabulary.names)
        if name not in requested and any(output.scores[0, index] > THRESHOLD for output in outputs)
    ]
    rows = [_row(label, label in requested, outputs, vocabulary) for label in (*requested, *others)]
    known = {label.split()[0] for label in (*requested, *others)}
    for index, color in enumerate(COLORS):
        scores = [_unclear_score(output, index) for output in outputs]
        if color not in known and any(score > THRESHOLD for score in scores):
            verdicts = tuple(EXTRA if score > THRESHOLD else ABSENT for score in scores)
            rows.append(Row(f"{color}, no clear shape", verdicts, tuple(scores)))
    names = (_short(evaluator.name) for evaluator in evaluators)
    counts = (None if output.counts is None else int(output.counts[0]) for output in outputs)
    return Findings(tuple(names), tuple(rows) if outputs else (), tuple(counts))


def _row(
    label: str, is_requested: bool, outputs: Sequence[ClassifierOutput], vocabulary: Vocabulary
) -> Row:
    """Return the row of a label."""
    scores = tuple(float(output.scores[0, vocabulary.index[label]]) for output in outputs)
    if not is_requested:
        return Row(label, tuple(EXTRA if score > THRESHOLD else ABSENT for score in scores), scores)
    color = label.split()[0]
    number = COLORS.index(color) if color in COLORS else None
    verdicts = tuple(
        SEEN
        if score > THRESHOLD
        else UNCLEAR
        if number is not None and _unclear_score(output, number) > THRESHOLD
        else MISSING
        for score, output in zip(scores, outputs, strict=True)
    )
    return Row(label, verdicts, scores)


def _short(name: str) -> str:
    """Return the name of an evaluator without the checksum of its file."""
    short = name.partition(" (")[0].removeprefix("iclevr-diffusion's ")
    return "first evaluator" if short == "own evaluator" else short


def _unclear_score(output: ClassifierOutput, color: int) -> float:
    """Return the score of an object of a color without a clear shape."""
    return 0.0 if output.unclear is None else float(output.unclear[0, color])
