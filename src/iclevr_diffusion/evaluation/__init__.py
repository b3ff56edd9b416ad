"""Evaluators, metrics, and the evaluation of generated images."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.evaluation.classifier import Evaluator, load_evaluator
    from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
    from iclevr_diffusion.evaluation.metric_collection import EvaluationMetrics
    from iclevr_diffusion.evaluation.metrics import ImageMetric, register_metric

__all__ = [
    "ClassifierOutput",
    "EvaluationMetrics",
    "Evaluator",
    "ImageMetric",
    "load_evaluator",
    "register_metric",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    ClassifierOutput="classifier_output",
    EvaluationMetrics="metric_collection",
    Evaluator="classifier",
    ImageMetric="metrics",
    load_evaluator="classifier",
    register_metric="metrics",
)
