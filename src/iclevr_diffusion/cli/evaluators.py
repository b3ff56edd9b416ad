"""The evaluators that a command uses beside the labels of its data or weights."""

from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.evaluation.classifier import Evaluator, load_second_evaluator
from iclevr_diffusion.utils.errors import UserError


def check_vocabulary(evaluator: Evaluator, vocabulary: Vocabulary, whose: str) -> None:
    """Check that an evaluator classifies the labels of a vocabulary.

    Args:
        evaluator: The evaluator.
        vocabulary: The labels.
        whose: Where the labels are from, for the message.

    Raises:
        UserError: It classifies others.
    """
    if evaluator.vocabulary != vocabulary:
        raise UserError(
            f"evaluator: {evaluator.name} does not classify the labels of {whose}; name one that"
            " does with evaluator._target_=…"
        )


def second_evaluator(vocabulary: Vocabulary) -> Evaluator | None:
    """Return the packaged second evaluator; it knows i-CLEVR's labels only."""
    return load_second_evaluator() if vocabulary == ICLEVR_LABELS else None
