"""Weights folders: safetensors and JSON, in the layout of diffusers.

A diffusion model's folder holds ``unet/`` (the network's ``save_pretrained``), ``scheduler/`` (the
schedule and the prediction), ``sampling.json`` (the default sampling settings) and ``data.json``
(the training data); a GAN's holds ``generator/`` and ``data.json``. ``labels.json`` is there if the
labels are not i-CLEVR's, and ``holdout.json`` (:class:`~iclevr_diffusion.data.holdout.Split`) if
the training held out label sets. ``model_index.json`` is for diffusers (:mod:`.model_index`).

Nothing in a folder is code: classes are looked up by name among those that are registered
(:func:`~iclevr_diffusion.models.known_networks.register_network`,
:func:`~.schedule.register_schedule`, :func:`~.prediction.register_prediction`).

A schedule that diffusers knows is saved as a scheduler of diffusers, any other one as JSON with its
``_class_name``. ``timestep_spacing="trailing"`` says that sampling begins at T-1. diffusers has no
name for ``spacing=karras`` (its ``use_karras_sigmas`` has other noise levels, between timesteps),
so ``sampling.json`` also lists the ``timesteps``, which diffusers' schedulers take as
``set_timesteps(timesteps=...)``. That list is for users of diffusers; it is not read here.
"""

import copy
import dataclasses
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor

from iclevr_diffusion.data.holdout import HELD_OUT, SEEN, Split
from iclevr_diffusion.data.labels import ICLEVR_LABELS, Vocabulary
from iclevr_diffusion.diffusion.hub import SETTINGS, TENSORS
from iclevr_diffusion.diffusion.model_index import INDEX_FILE, check_index, model_index
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.restore import (
    build_generator,
    build_model,
    known_settings,
    plain_values,
    read_vocabulary,
)
from iclevr_diffusion.diffusion.run_checkpoint import load_checkpoint
from iclevr_diffusion.diffusion.schedule import Schedule, schedule_config
from iclevr_diffusion.diffusion.trained import GAN, SAMPLING_KEYS, Model
from iclevr_diffusion.diffusion.weights_path import find_weights
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import move
from iclevr_diffusion.utils.json import read_json, read_object
from iclevr_diffusion.utils.registry import CLASS_NAME
from iclevr_diffusion.utils.text import one_line
from iclevr_diffusion.utils.typed_json import read_dataclass
from iclevr_diffusion.utils.weights import convert, load_tensors

SCHEDULER_FILE = "scheduler_config.json"
HOLDOUT_FILE = "holdout.json"
# The files and folders of which a weights folder can consist.
PARTS = tuple(dict.fromkeys(Path(file).parts[0] for file in SETTINGS + TENSORS))


def save_model(model: Model | GAN, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a weights folder atomically, replacing an earlier one.

    Args:
        model: The model.
        folder: Where to write it.
        dtype: The dtype in the file; weights are loaded as float32 in any case.

    Raises:
        UserError: The weights exceed the range of the dtype.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        net = model.net
        if dtype != torch.float32:
            net = convert(copy.deepcopy(net), dtype)
        net.save_pretrained(  # type: ignore[operator]
            partial / ("unet" if isinstance(model, Model) else "generator"),
            safe_serialization=True,
            max_shard_size="1TB",  # one file, whatever its size
        )
        _write_json(partial / INDEX_FILE, model_index(model))
        _write_json(partial / "data.json", model.data)
        if model.vocabulary != ICLEVR_LABELS:
            _write_json(partial / "labels.json", list(model.vocabulary.names))
        if model.split is not None:
            _write_json(partial / HOLDOUT_FILE, dataclasses.asdict(model.split))
        if isinstance(model, Model):
            sampling = dict(model.sampling)
            if sampling:
                sampling["timesteps"] = model.pipeline().timesteps
            _write_json(partial / "sampling.json", sampling)
            _save_schedule(model.schedule, model.prediction.name, partial / "scheduler")
        _replace_folder(partial, folder)
    except SafetensorError as error:  # such as a full disk
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def save_into(model: Model | GAN, folder: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """Write weights into a folder that may hold other files, which stay.

    Earlier weights are replaced as a whole, so that none of their files is read as one of these.
    They are renamed first and removed last: a killed process leaves them in ``.weights.*.old``.

    Returns:
        The files, as paths relative to the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        saved = save_model(model, Path(temporary, "weights"), dtype)
        files = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
        old = folder / f".weights.{os.getpid()}-{secrets.token_hex(4)}.old"
        old.mkdir()
        for name in PARTS:
            if os.path.lexists(folder / name):
                move(folder / name, old / name)
        for path in saved.iterdir():
            move(path, folder / path.name)
        shutil.rmtree(old)
    return sorted(files)


def stored_dtype(path: Path) -> torch.dtype:
    """Return the dtype in which most weights of a folder are stored; of a checkpoint, float32.

    Args:
        path: As :func:`~.weights_path.find_weights` returns it.
    """
    if path.is_file():
        return torch.float32
    tensors, _ = load_tensors(next(path.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}")))
    elements: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            elements[tensor.dtype] += tensor.numel()
    return elements.most_common(1)[0][0]


def load_model(path: str | Path) -> Model | GAN:
    """Load weights.

    Args:
        path: ``pretrained`` (the packaged weights), a run folder, a folder of runs (the newest one
            counts), a weights folder, a checkpoint, or ``hf://user/name``. From a
            checkpoint, averaged weights are preferred.

    Raises:
        UserError: There are no weights, or they cannot be read or are invalid.
    """
    found = find_weights(Path(path))
    try:
        return load_checkpoint(found) if found.is_file() else _load_folder(found)
    except Exception as error:  # foreign and truncated files raise all kinds of errors
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"weights={path}: cannot read {found}: {one_line(text, 240)}") from error


def load_pipeline(
    path: str | Path = "pretrained", device: str | torch.device = "cpu", **settings: Any
) -> Pipeline:
    """Load weights as a pipeline, which generates images with them.

    Example:
        >>> pipeline = load_pipeline("pretrained")
        >>> images = pipeline.generate(["red cube", "blue sphere"], count=4, seed=0)

    Args:
        path: ``pretrained`` (the packaged weights), a run folder, a folder of runs (the newest one
            counts), a weights folder, a checkpoint, or ``hf://user/name``.
        device: Where to generate.
        settings: Sampling settings that replace the stored ones, such as ``sampler="ddim"``,
            ``steps=50`` or ``guidance_scale=2.0``; see :meth:`.trained.Model.pipeline`.

    Raises:
        UserError: There are no weights, or they cannot be read or are invalid.
        ValueError: A setting is out of range.
    """
    return load_model(path).to(torch.device(device)).pipeline(**settings)


def _load_folder(folder: Path) -> Model | GAN:
    described = folder / "data.json"
    data = plain_values(described, _read_object_if_any(described))
    names = folder / "labels.json"
    vocabulary = read_vocabulary(read_json(names)) if names.exists() else ICLEVR_LABELS
    is_gan = (folder / "generator").is_dir()
    network, state = _saved(folder / ("generator" if is_gan else "unet"))
    check_index(folder / INDEX_FILE, network.get(CLASS_NAME))
    split = _read_split(folder / HOLDOUT_FILE, vocabulary)
    if is_gan:
        return GAN(build_generator(network, state, vocabulary), data, vocabulary, split)
    scheduler = read_object(folder / "scheduler" / SCHEDULER_FILE)
    prediction = scheduler.pop("prediction_type")
    settings = folder / "sampling.json"
    sampling = known_settings(settings, _read_object_if_any(settings), SAMPLING_KEYS)
    model = build_model(network, state, scheduler, prediction, vocabulary)
    return dataclasses.replace(model, sampling=sampling, data=data, split=split)


def _read_split(path: Path, vocabulary: Vocabulary) -> Split | None:
    """Read the held-out label sets; None if there is no file.

    Raises:
        UserError: The file is not of that kind, or names unknown lists or labels.
    """
    if not path.exists():
        return None
    split = read_dataclass(Split, path)
    if split.lists.keys() != {HELD_OUT, SEEN}:
        raise UserError(f"{path}: lists must be {HELD_OUT} and {SEEN}")
    lists = {
        name: [list(vocabulary.check(label_set)) for label_set in label_sets]
        for name, label_sets in split.lists.items()
    }
    return Split(split.settings, lists)


def _saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a saved network's config and weights."""
    tensors, _ = load_tensors(folder / SAFETENSORS_WEIGHTS_NAME)
    return read_object(folder / "config.json"), tensors


def diffusers_scheduler(schedule: Schedule, prediction: str) -> DDPMScheduler | None:
    """Return the schedule and the prediction as a scheduler of diffusers; None if it has none."""
    config = schedule.diffusers_config()
    if config is None:
        return None
    return DDPMScheduler(**config, prediction_type=prediction, timestep_spacing="trailing")


def _save_schedule(schedule: Schedule, prediction: str, folder: Path) -> None:
    scheduler = diffusers_scheduler(schedule, prediction)
    if scheduler is None:
        folder.mkdir(parents=True)
        _write_json(
            folder / SCHEDULER_FILE, schedule_config(schedule) | {"prediction_type": prediction}
        )
        return
    scheduler.save_pretrained(folder)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_object_if_any(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file that may be missing."""
    return read_object(path) if path.is_file() else {}


def _replace_folder(source: Path, target: Path) -> None:
    """Move ``source`` to ``target``; an older one is removed once the new one is there."""
    if not target.exists():
        move(source, target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    move(target, old)
    move(source, target)
    shutil.rmtree(old)
