"""Diffusion: schedules, predictions, the loss, guidance, samplers, pipelines and weights."""

from typing import Any

from iclevr_diffusion.utils.lazy import lazy_attributes

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

_load = lazy_attributes(
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


def __getattr__(name: str) -> Any:
    return _load(name)


def __dir__() -> list[str]:
    return __all__
