"""Weights that leave a run, and come back: safetensors and JSON, in diffusers' own layout.

A weights folder holds ``unet/`` (ConditionalUNet.save_pretrained), ``scheduler/`` (the training
schedule and what the network predicts, as a diffusers scheduler config), ``sampling.json`` (how its
author draws with it) and ``data.json`` (what it was trained on). Nothing in it is code, and nothing
read from it is run.
"""

import errno
import json
import math
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iclevr_diffusion.data.jsonfile import read_json
from iclevr_diffusion.diffusion.objective import Prediction, find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.nets.unet import ConditionalUNet
from iclevr_diffusion.nets.weights import fill, load_pickle

SAMPLING_KEYS = {"sampler": str, "steps": int, "guidance_scale": float, "label_drop": float}
DATA_KEYS = {"source": str, "sequences": int, "seed": int}


@dataclass(frozen=True)
class Model:
    """A trained network and what it takes to draw with it.

    net: in evaluation mode.
    schedule, prediction: those of its training.
    sampling: its author's settings: ``sampler``, ``steps``, ``guidance_scale``; any may be missing.
    data: what it was trained on, as its source describes itself (``source``, and what it takes to
        draw it again: ``sequences``, ``seed``); empty where that is not known.
    """

    net: ConditionalUNet
    schedule: NoiseSchedule
    prediction: Prediction
    sampling: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas_cumprod.device

    def to(self, device: torch.device) -> "Model":
        """The model on that device; the network itself moves."""
        return replace(self, net=self.net.to(device), schedule=self.schedule.to(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures."""
        size = self.net.config["image_size"]
        return 3, size, size


def save_model(model: Model, folder: Path) -> Path:
    """Write a weights folder: whole, or not at all. An earlier one at that place is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.net.save_pretrained(
            partial / "unet",
            safe_serialization=True,
            max_shard_size="1TB",  # one file, whatever its size
        )
        scheduler = DDPMScheduler(**model.schedule.config, prediction_type=model.prediction.name)
        scheduler.save_pretrained(partial / "scheduler")
        for name, content in (("sampling", model.sampling), ("data", model.data)):
            text = json.dumps(content, indent=2) + "\n"
            (partial / f"{name}.json").write_text(text, encoding="utf-8")
        _replace_folder(partial, folder)
    except SafetensorError as error:  # of the disk, for one
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_model(path: str | Path) -> Model:
    """Read the weights at ``path``.

    Args:
        path: a weights folder, a run folder (its ``weights/``, else its best or last checkpoint),
            a folder of runs (the newest one that has weights), or a checkpoint file. From a
            checkpoint the averaged weights are taken where there are some.

    Raises:
        UserError: there is nothing of that kind, or it cannot be read or makes no sense.
    """
    found = find_weights(Path(path))
    try:
        return _load_checkpoint(found) if found.is_file() else _load_folder(found)
    except Exception as error:  # whatever a foreign or truncated file makes the readers raise
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        reason = " ".join(what.split())[:240]
        raise UserError(f"weights={path}: cannot read {found}: {reason}") from error


def find_weights(path: Path) -> Path:
    """The weights folder or checkpoint file that ``path`` stands for; see :func:`load_model`.

    Raises:
        UserError: there is none.
    """
    places = ("weights", "checkpoints/best.ckpt", "checkpoints/last.ckpt")
    candidates = [path, *(path / place for place in places)]
    if path.is_dir():
        for run in sorted((run for run in path.iterdir() if run.is_dir()), reverse=True):
            candidates += [run / place for place in places]
    for candidate in candidates:
        if candidate.is_file() or (candidate / "unet" / "config.json").is_file():
            return candidate
    raise UserError(
        f"weights={path}: no weights there; give a run folder (outputs/<experiment>/<run>),"
        " its weights/ folder, or a .ckpt file"
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint of this project; no code in it is run.

    Raises:
        UserError: the file is truncated, or is something else.
    """
    try:
        checkpoint = load_pickle(path, mmap=True)
        if not isinstance(checkpoint, dict):
            raise TypeError("not a dict")
        checkpoint["model"], checkpoint["callbacks"], checkpoint["state_dict"]
    except Exception as error:  # whatever a foreign or truncated file makes the reader raise
        raise UserError(
            f"{path} is damaged, or no checkpoint of this project; leave it out or start anew"
        ) from error
    return dict(checkpoint)


def _load_folder(folder: Path) -> Model:
    config = _read_object(folder / "unet" / "config.json")
    # Names with an underscore are diffusers' own; which class to build is not for a file to say.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    scheduler = _read_object(folder / "scheduler" / "scheduler_config.json")
    return Model(
        _network(settings, load_file(folder / "unet" / SAFETENSORS_WEIGHTS_NAME)),
        _schedule(scheduler),
        find_prediction(scheduler["prediction_type"]),
        _read_settings(folder / "sampling.json", SAMPLING_KEYS),
        _read_settings(folder / "data.json", DATA_KEYS),
    )


def _load_checkpoint(path: Path) -> Model:
    checkpoint = read_checkpoint(path)
    description = checkpoint["model"]
    averaged = checkpoint["callbacks"].get("EMA")
    raw = checkpoint["state_dict"].items()
    state = {key.removeprefix("net."): value for key, value in raw if key.startswith("net.")}
    return Model(
        _network(description["net"], averaged["net"] if averaged else state),
        _schedule(description["schedule"]),
        find_prediction(description["prediction"]),
        {},
    )


def _network(settings: dict[str, Any], state: dict[str, Tensor]) -> ConditionalUNet:
    with torch.device("meta"):
        net: ConditionalUNet = ConditionalUNet(**settings)
    fill(net, state)
    net.eval()
    return net


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _read_settings(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    """The settings of a file that may be missing; those that nothing here knows are left out."""
    content = _read_object(path) if path.is_file() else {}
    known = {key: content[key] for key in kinds if key in content}
    for key, value in known.items():
        number = kinds[key] is float and type(value) in (int, float) and math.isfinite(value)
        if not (number or type(value) is kinds[key]):
            raise UserError(f"{path}: {key} makes no sense: {value!r:.60}")
    return known


def _schedule(config: dict[str, Any]) -> NoiseSchedule:
    return NoiseSchedule(
        name=config["beta_schedule"],
        timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
    )


def _replace_folder(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``; an older one goes once the new one is there."""
    if not target.exists():
        source.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    source.rename(target)
    shutil.rmtree(old)
