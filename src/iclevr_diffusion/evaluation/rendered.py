"""Scores of evaluators on rendered scenes with more objects than i-CLEVR's frames show.

An evaluator is no more reliable on a generated image of six objects than on a real one. i-CLEVR's
frames show up to three objects, so rendered scenes stand in for real images of six.
"""

from collections.abc import Sequence

import torch

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.synthetic.dataset import STEPS, render_side_by_side
from iclevr_diffusion.data.synthetic.scenes import sample_scenes
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.evaluation.classifier import IMAGE_SIZE, Evaluator, classify
from iclevr_diffusion.evaluation.factors import FactorTotals

OBJECTS_IN_FRAMES = STEPS  # most objects in an i-CLEVR frame
SCENES = 64
SEED = 1_000_003  # not used for any scene that an evaluator was trained on
PREFIXES = ("", "second_")


def figures_on_rendered(evaluators: Sequence[Evaluator], number: int) -> dict[str, float]:
    """Score ``SCENES`` rendered scenes as if they had been generated for their labels.

    Args:
        evaluators: For i-CLEVR's labels: the first and, optionally, the second.
        number: Objects per scene, with distinct labels.

    Returns:
        ``shown``, the share of objects that the evaluator sees, and ``exact_match``; for the second
        evaluator ``second_shown`` and ``second_exact_match``.
    """
    scenes = sample_scenes(SEED, torch.arange(SCENES), number)
    images = to_unit_range(render_side_by_side(scenes, IMAGE_SIZE)[:, -1])
    labels = torch.zeros(SCENES, NUM_LABELS).scatter_(1, scenes.labels(), 1.0)
    result = {}
    for prefix, evaluator in zip(PREFIXES, evaluators, strict=False):
        totals = FactorTotals(evaluator.vocabulary, evaluator.max_count)
        totals.add(classify(evaluator, images.to(evaluator.device)), labels)
        result[f"{prefix}shown"] = totals.shown_by_group()["number"][str(number)]
        result[f"{prefix}exact_match"] = totals.exact_by_number()[str(number)]
    return result
