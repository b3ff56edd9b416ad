"""Diffusion: schedules, predictions, the loss, guidance, samplers, pipelines and weights."""

from typing import TYPE_CHECKING

from iclevr_diffusion.utils.lazy import lazy_attributes

if TYPE_CHECKING:
    from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
    from iclevr_diffusion.diffusion.io import load_model, load_pipeline, save_model
    from iclevr_diffusion.diffusion.loss import Objective
    from iclevr_diffusion.diffusion.pipeline import Pipeline
    from iclevr_diffusion.diffusion.prediction import Prediction, register_prediction
    from iclevr_diffusion.diffusion.samplers import Sampler
    from iclevr_diffusion.diffusion.schedule import (
        FlowSchedule,
        NoiseSchedule,
        Schedule,
        register_schedule,
    )

__all__ = [
    "Denoiser",
    "FlowSchedule",
    "Guidance",
    "NoiseSchedule",
    "Objective",
    "Pipeline",
    "Prediction",
    "Sampler",
    "Schedule",
    "load_model",
    "load_pipeline",
    "register_prediction",
    "register_schedule",
    "save_model",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    Denoiser="guidance",
    FlowSchedule="schedule",
    Guidance="guidance",
    NoiseSchedule="schedule",
    Objective="loss",
    Pipeline="pipeline",
    Prediction="prediction",
    Sampler="samplers",
    Schedule="schedule",
    load_model="io",
    load_pipeline="io",
    register_prediction="prediction",
    register_schedule="schedule",
    save_model="io",
)
