"""All metrics of an evaluation together, and the accuracy after each denoising step."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.evaluation.breakdowns import AccuracyPerCount, AccuracyPerLabel, Confusion
from iclevr_diffusion.evaluation.classifier import Evaluator, classify
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.metrics import METRICS, ImageMetric, LabelAccuracy

SECOND_EVALUATOR_METRICS = ("accuracy", "exact_match")
MOST_BY_STEP = 128


class EvaluationMetrics(nn.Module):
    """All metrics of images and the labels they were generated for.

    With several processes, each adds its own images, and :meth:`compute` is the same in all.

    Args:
        evaluator: Classifies the images.
        kwargs: Arguments of :class:`torchmetrics.Metric`, such as ``sync_on_compute=False`` for a
            single one of several processes.
    """

    def __init__(self, evaluator: Evaluator, **kwargs: Any) -> None:
        super().__init__()
        self.evaluator = evaluator
        settings = (len(evaluator.vocabulary), evaluator.max_count)
        self.metrics = nn.ModuleDict(
            {name: kind(*settings, **kwargs) for name, kind in METRICS.items()}
        )
        self.per_label = AccuracyPerLabel(*settings, **kwargs)
        self.per_count = AccuracyPerCount(*settings, **kwargs)
        self.confusion = Confusion(*settings, **kwargs)

    @torch.no_grad()
    def update(self, images: Tensor, labels: Tensor) -> ClassifierOutput:
        """Classify images (B, 3, H, W) in [-1, 1] and add them with their labels (B, L).

        Raises:
            ValueError: A value of the images is NaN or outside [-1, 1].
        """
        output = classify(self.evaluator, images)
        self.add(output, labels)
        return output

    def add(self, output: ClassifierOutput, labels: Tensor) -> None:
        """Add images that are classified already."""
        for metric in self.modules():
            if isinstance(metric, ImageMetric):
                metric.update(output, labels)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, without those for which the evaluator gave nothing."""
        values = {
            name: float(cast(ImageMetric, metric).compute())
            for name, metric in self.metrics.items()
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def by_label(self) -> dict[str, float]:
        """Return the accuracy of each requested label."""
        values = self.per_label.compute().tolist()
        names = zip(self.evaluator.vocabulary.names, values, strict=True)
        return {name: value for name, value in names if not math.isnan(value)}

    def by_count(self) -> dict[str, float]:
        """Return the accuracy of the images with k labels, by k."""
        values = enumerate(self.per_count.compute().tolist())
        return {str(count): value for count, value in values if not math.isnan(value)}


class AccuracyByStep:
    """An ``on_step`` callback: the accuracy of the estimate of x_0 and of x_t after each step.

    The estimate shows its objects long before x_t does, where they are still under noise. Of a long
    list, only the first :data:`MOST_BY_STEP` images count, since this takes longer than sampling.

    Args:
        evaluator: Classifies both; x_t is clamped to [-1, 1].
        labels: The labels of all images, (B, L).
        steps: Sampling steps.
    """

    def __init__(self, evaluator: Evaluator, labels: Tensor, steps: int) -> None:
        self.evaluator = evaluator
        self.labels = labels
        num_labels = labels.shape[1]
        self._of_x0 = [LabelAccuracy(num_labels).to(labels.device) for _ in range(steps)]
        self._of_x_t = [LabelAccuracy(num_labels).to(labels.device) for _ in range(steps)]

    def __call__(self, step: Step) -> None:
        count = MOST_BY_STEP - step.rows.start
        if count <= 0:
            return
        labels = self.labels[step.rows][:count]
        for images, metrics in ((step.x0, self._of_x0), (step.x_t.clamp(-1, 1), self._of_x_t)):
            metrics[step.number].update(self.evaluator(images[:count]), labels)

    def values(self) -> tuple[list[float], list[float]]:
        """Return one accuracy per step: of the estimate of x_0, and of x_t."""
        of_x0, of_x_t = (
            [float(metric.compute()) for metric in metrics]
            for metrics in (self._of_x0, self._of_x_t)
        )
        return of_x0, of_x_t


def second_opinion(evaluator: Evaluator, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy and exact match of images (B, 3, H, W) by a second evaluator."""
    metrics = EvaluationMetrics(evaluator).to(evaluator.device)
    metrics.update(images, labels)
    values = metrics.compute()
    return {name: values[name] for name in SECOND_EVALUATOR_METRICS}
