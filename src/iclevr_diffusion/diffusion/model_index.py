"""``model_index.json``, by which diffusers finds the parts of a pipeline.

diffusers imports the classes that the file names. Here nothing is imported by it: the file is only
checked, so that one that names other code is refused before somebody gives it to diffusers.
"""

from pathlib import Path
from typing import Any

import diffusers

from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.schedule import schedule_config
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.models.known_networks import NETWORKS
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_object
from iclevr_diffusion.utils.registry import CLASS_NAME

INDEX_FILE = "model_index.json"
PIPELINE_CLASS = "ICLEVRPipeline"
SCHEDULER = ["diffusers", "DDPMScheduler"]
SETTINGS = ("noise_schedule", "sampling", "labels", "data")  # arguments that are no components


def model_index(model: Model | GAN) -> dict[str, Any]:
    """Return the content of ``model_index.json``.

    Besides the components it holds the arguments of :class:`~.iclevr_pipeline.ICLEVRPipeline`.
    """
    index: dict[str, Any] = {
        CLASS_NAME: PIPELINE_CLASS,
        "_diffusers_version": diffusers.__version__,
    }
    network = [type(model.net).__module__, type(model.net).__name__]
    if isinstance(model, GAN):
        index["generator"] = network
    else:
        index["unet"] = network
        if model.schedule.diffusers_config() is not None:
            index["scheduler"] = SCHEDULER
    return index | pipeline_settings(model)


def pipeline_settings(model: Model | GAN) -> dict[str, Any]:
    """Return the settings of a pipeline as plain values."""
    known = model.vocabulary == ICLEVR_LABELS
    settings: dict[str, Any] = {"labels": None if known else list(model.vocabulary.names)}
    settings["data"] = dict(model.data)
    if isinstance(model, Model):
        settings["sampling"] = dict(model.sampling)
        if model.schedule.diffusers_config() is None:
            prediction = {"prediction_type": model.prediction.name}
            settings["noise_schedule"] = schedule_config(model.schedule) | prediction
    return settings


def check_index(path: Path, network: object) -> None:
    """Check a ``model_index.json``; one that is missing is fine.

    Args:
        path: The file.
        network: The class name of the network that is beside it.

    Raises:
        UserError: It names a class that is not one of these weights.
    """
    if not path.is_file():
        return
    index = read_object(path)
    if index.get(CLASS_NAME) != PIPELINE_CLASS:
        raise UserError(
            f"{path}: {CLASS_NAME} must be {PIPELINE_CLASS}, got {index.get(CLASS_NAME)!r:.60}"
        )
    ours = [NETWORKS.find(network).__module__, network]
    allowed = {"unet": ours, "generator": ours, "scheduler": SCHEDULER}
    for name, value in index.items():
        is_component = not name.startswith("_") and name not in SETTINGS
        if is_component and value not in (allowed.get(name), [None, None]):
            raise UserError(f"{path}: {name} names code outside these weights: {value!r:.60}")
