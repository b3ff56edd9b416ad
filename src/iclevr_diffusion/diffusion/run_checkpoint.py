"""Reading a training checkpoint."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.restore import (
    build_generator,
    build_model,
    known_settings,
    read_vocabulary,
)
from iclevr_diffusion.diffusion.trained import GAN, SAMPLING_KEYS, Model
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.weights import load_pickle


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a training checkpoint; code in it is not run.

    Raises:
        UserError: There is no file, or it is truncated or not a checkpoint of this project.
    """
    if not path.exists():
        raise UserError(f"there is no checkpoint {path}")
    try:
        # On other systems than POSIX a mapped file could not be replaced.
        checkpoint = load_pickle(path, mmap=os.name == "posix")
        if not isinstance(checkpoint, dict):
            raise TypeError("not a dict")
        checkpoint["model"], checkpoint["callbacks"], checkpoint["state_dict"]
    except Exception as error:  # foreign and truncated files raise all kinds of errors
        raise UserError(
            f"{path} is damaged, or not a checkpoint of this project; use another one"
        ) from error
    return dict(checkpoint)


def trained_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's network: averaged, if there are such."""
    averaged = checkpoint["callbacks"].get("EMA")
    if averaged:
        state: dict[str, Tensor] = averaged["net"]
        return state
    raw = checkpoint["state_dict"].items()
    return {key.removeprefix("net."): value for key, value in raw if key.startswith("net.")}


def load_checkpoint(path: Path) -> Model | GAN:
    """Load a checkpoint as a model, with averaged weights if there are any."""
    checkpoint = read_checkpoint(path)
    description = checkpoint["model"]
    state = trained_state(checkpoint)
    vocabulary = read_vocabulary(description.get("labels", ICLEVR_LABELS.names))
    if "generator" in description:
        return GAN(build_generator(description["generator"], state, vocabulary), {}, vocabulary)
    sampling = known_settings(path, checkpoint.get("sampling", {}), SAMPLING_KEYS)
    prediction = description.get("sampled_as", description["prediction"])
    schedule = description["schedule"]
    model = build_model(description["net"], state, schedule, prediction, vocabulary)
    return dataclasses.replace(model, sampling=sampling)
