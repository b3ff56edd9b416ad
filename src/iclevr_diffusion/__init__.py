"""Conditional diffusion on i-CLEVR: from a set of labels to images of exactly those objects.

Example:
    >>> from iclevr_diffusion import load_pipeline
    >>> pipeline = load_pipeline("pretrained")
    >>> images = pipeline.generate(["red cube", "blue sphere"], count=4, seed=0)
"""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.data.labels import NAMES as LABELS
    from iclevr_diffusion.diffusion.iclevr_pipeline import ICLEVRPipeline
    from iclevr_diffusion.diffusion.io import load_pipeline
    from iclevr_diffusion.evaluation.classifier import load_evaluator

__version__ = "0.2.0"
__all__ = ["LABELS", "ICLEVRPipeline", "__version__", "load_evaluator", "load_pipeline"]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    LABELS="data.labels:NAMES",
    ICLEVRPipeline="diffusion.iclevr_pipeline",
    load_pipeline="diffusion.io",
    load_evaluator="evaluation.classifier",
)
