"""Weights that leave a run, and come back: safetensors and JSON, in diffusers' own layout.

A weights folder of a diffusion model holds ``unet/`` (the network's save_pretrained),
``scheduler/`` (the training schedule and what the samplers take the outputs for, as a diffusers
scheduler config), ``sampling.json`` (how its author draws with it) and ``data.json`` (what it was
trained on); that of a GAN ``generator/`` and ``data.json``. Nothing in it is code, and nothing read
from it is run.

The scheduler config says ``timestep_spacing="trailing"``: sampling begins at T-1. diffusers has no
name for ``spacing=karras`` (its ``use_karras_sigmas`` spaces other noise levels, and between
timesteps), so ``sampling.json`` also lists the ``timesteps``, whatever the spacing; the schedulers
of diffusers that take them get them by ``set_timesteps(timesteps=...)``. Nothing here reads that
list: the other settings give the same.
"""

import copy
import errno
import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDPMScheduler
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import Tensor, nn

from iclevr_diffusion.data.jsonfile import read_json
from iclevr_diffusion.diffusion.guidance import Denoiser, Guidance
from iclevr_diffusion.diffusion.objective import Prediction, find_prediction
from iclevr_diffusion.diffusion.sampling import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.drawing import DiffusionDrawer, GeneratorDrawer, refuse_layout
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.files import CONFIG, move
from iclevr_diffusion.labels import NUM_LABELS
from iclevr_diffusion.nets.dcgan import Generator
from iclevr_diffusion.nets.experts import NoiseExperts, detail_part
from iclevr_diffusion.nets.flops import flops
from iclevr_diffusion.nets.kinds import DiffusionNet, kind_of_net
from iclevr_diffusion.nets.layout import CLEAR, TakesPositions
from iclevr_diffusion.nets.weights import fill, load_pickle, load_tensors, nothing_allocated

SAMPLING_KEYS = {
    "sampler": str,
    "steps": int,
    "spacing": str,
    "max_noise": float,
    "min_noise": float,
    "rho": float,
    "guidance_scale": float,
    "guidance_min_noise": float,
    "guidance_max_noise": float,
    "label_drop": float,
}
SPACING_KEYS = ("spacing", "max_noise", "min_noise", "rho")
DATA_KEYS = {"source": str, "sequences": int, "seed": int}
Net = TypeVar("Net", bound=nn.Module)
PRETRAINED = "pretrained"  # as a path: the weights that come with the package
PRETRAINED_FOLDER = Path(__file__).parent / PRETRAINED


@dataclass(frozen=True)
class Model:
    """A trained network and what it takes to draw with it.

    net: in evaluation mode.
    schedule, prediction: those of its training.
    sampling: its author's settings: ``sampler``, ``steps``, ``guidance_scale``, … (the keys of
        ``SAMPLING_KEYS``); any may be missing.
    data: what it was trained on, as its source describes itself (``source``, and what it takes to
        draw it again: ``sequences``, ``seed``); empty where that is not known.
    """

    net: DiffusionNet
    schedule: NoiseSchedule
    prediction: Prediction
    sampling: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.schedule.alphas_cumprod.device

    def to(self, device: torch.device) -> "Model":
        """The model on that device; the network itself moves."""
        net = nn.Module.to(self.net, device)  # diffusers' own imports what offloads to the disk
        return replace(self, net=net, schedule=self.schedule.to(device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures."""
        size = self.net.config["image_size"]
        return 3, size, size

    def drawer(
        self,
        name: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_min_noise: float | None = None,
        guidance_max_noise: float | None = None,
        layout: str = CLEAR,
        **spacing: Any,
    ) -> DiffusionDrawer:
        """How it draws: as its author did, but for what is given.

        Args:
            layout: how to sample where objects stand: ``clear`` or ``data``.
            spacing: ``spacing``, ``max_noise``, ``min_noise`` and ``rho`` of the
                :class:`~.diffusion.sampling.Sampler`.

        Raises:
            ValueError: a setting is out of range, or these weights cannot be guided, or take no
                positions.
        """
        given = {"sampler": name, "steps": steps, "guidance_scale": guidance_scale, **spacing}
        given["guidance_min_noise"] = guidance_min_noise
        given["guidance_max_noise"] = guidance_max_noise
        how: dict[str, Any] = {"sampler": "dpm_solver", "steps": 20}
        how |= {"guidance_scale": 1.0} | self.sampling
        how |= {key: value for key, value in given.items() if value is not None}
        scale = how["guidance_scale"]
        if scale != 1 and how.get("label_drop") == 0:
            raise ValueError(
                f"guidance.scale={scale:g} needs weights that were trained with dropped labels"
                " (guidance=cfg); these were not, so use guidance.scale=1"
            )
        spaced = {key: how[key] for key in SPACING_KEYS if key in how}
        sampler = Sampler(how["sampler"], how["steps"], **spaced)
        guidance = Guidance(
            scale, how.get("guidance_min_noise", 0.0), how.get("guidance_max_noise")
        )
        denoiser = Denoiser(self.net, self.schedule, self.prediction, guidance)
        return DiffusionDrawer(denoiser, sampler, self.image_shape, layout)

    def flops_forward(self) -> int:
        """Floating-point operations of one call of the network for one picture.

        Of two experts, those of the costlier one.
        """
        x_t, timesteps = torch.zeros(1, *self.image_shape), torch.zeros(1, dtype=torch.long)
        is_split = isinstance(self.net, NoiseExperts)
        nets = [self.net.coarse, self.net.detail] if is_split else [self.net]
        return max(
            flops(net, x_t, timesteps, torch.zeros(1, self.net.condition_size)) for net in nets
        )


@dataclass(frozen=True)
class GAN:
    """The trained generator of a GAN.

    net: in evaluation mode.
    data: as :class:`Model`.
    """

    net: Generator
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.net.parameters()).device
        return device

    def to(self, device: torch.device) -> "GAN":
        """The generator on that device; the network itself moves."""
        return replace(self, net=nn.Module.to(self.net, device))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures."""
        return self.net.image_shape

    def drawer(self, layout: str = CLEAR, **given: Any) -> GeneratorDrawer:
        """How it draws: in one pass.

        Raises:
            ValueError: something is given that only diffusion models have.
        """
        if any(value is not None for value in given.values()):
            raise ValueError(
                "these weights are a GAN's generator: it draws in one pass; leave out sampler and"
                " guidance"
            )
        refuse_layout(layout, takes_positions=False)
        return GeneratorDrawer(self.net)

    def flops_forward(self) -> int:
        """Floating-point operations of one call of the generator for one picture."""
        return flops(self.net, torch.zeros(1, self.net.latent), torch.zeros(1, NUM_LABELS))


def save_model(model: Model | GAN, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a weights folder: whole, or not at all. An earlier one at that place is replaced.

    Args:
        dtype: of the weights in the file; what reads them computes in float32 whatever it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        net = model.net
        if dtype != torch.float32:  # nn.Module's to(): diffusers' warns of modules it has none of
            net = nn.Module.to(copy.deepcopy(net), dtype)
        net.save_pretrained(
            partial / ("unet" if isinstance(model, Model) else "generator"),
            safe_serialization=True,
            max_shard_size="1TB",  # one file, whatever its size
        )
        settings = {"data": model.data}
        if isinstance(model, Model):
            settings["sampling"] = model.sampling
            if model.sampling:
                settings["sampling"] = model.sampling | {"timesteps": model.drawer().timesteps}
            scheduler = DDPMScheduler(
                **model.schedule.config,
                prediction_type=model.prediction.name,
                timestep_spacing="trailing",
            )
            scheduler.save_pretrained(partial / "scheduler")
        for name, content in settings.items():
            text = json.dumps(content, indent=2) + "\n"
            (partial / f"{name}.json").write_text(text, encoding="utf-8")
        _replace_folder(partial, folder)
    except SafetensorError as error:  # of the disk, for one
        raise OSError(errno.EIO, str(error), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def load_model(path: str | Path) -> Model | GAN:
    """Read the weights at ``path``.

    Args:
        path: ``pretrained`` for those that come with the package, a weights folder, a run folder
            (its ``weights/``, else its best or last checkpoint), a folder of runs (the newest one
            that has weights), or a checkpoint file. From a checkpoint the averaged weights are
            taken where there are some.

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


def weights_sum(path: Path) -> str:
    """A sum over weights, the same for the same weights: the SHA-256 of their file.

    Args:
        path: a weights folder or a checkpoint, as :func:`find_weights` finds it.
    """
    files = [path] if path.is_file() else sorted(path.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}"))
    with files[0].open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(path: Path) -> Path:
    """The weights folder or checkpoint file that ``path`` stands for; see :func:`load_model`.

    Raises:
        UserError: there is none.
    """
    path = path.expanduser()
    candidates = [path]
    if path == Path(PRETRAINED):
        candidates = [PRETRAINED_FOLDER]
    elif path.is_dir():
        runs = sorted((run for run in path.iterdir() if run.is_dir()), key=_start, reverse=True)
        candidates = [path, *(place for run in (path, *runs) for place in _places(run))]
    for candidate in candidates:
        kinds = ("unet", "generator")
        if candidate.is_file() or any((candidate / k / "config.json").is_file() for k in kinds):
            return candidate
    raise UserError(
        f"weights={path}: no weights there; give a run folder (outputs/<experiment>/<run>),"
        " its weights/ folder, a .ckpt file, or leave it out for those that come with the package"
    )


def _start(run: Path) -> tuple[float, str]:
    """What sorts runs by their last start, as ``resume=true`` does; others by name, before them."""
    config = run / CONFIG
    return (config.stat().st_mtime if config.is_file() else 0.0), run.name


def _places(run: Path) -> list[Path]:
    """Where a run's weights may be; those that it published not first if it has trained since."""
    weights, best = run / "weights", run / "checkpoints" / "best.ckpt"
    places = [weights, best, run / "checkpoints" / "last.ckpt"]
    published = [*weights.glob(f"*/{SAFETENSORS_WEIGHTS_NAME}")]
    if published and best.is_file() and best.stat().st_mtime > published[0].stat().st_mtime:
        places = [best, weights, *places[2:]]
    return places


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint of this project; no code in it is run.

    Raises:
        UserError: the file is truncated, or is something else.
    """
    try:
        # Elsewhere a file that is mapped could not be replaced.
        checkpoint = load_pickle(path, mmap=os.name == "posix")
        if not isinstance(checkpoint, dict):
            raise TypeError("not a dict")
        checkpoint["model"], checkpoint["callbacks"], checkpoint["state_dict"]
    except Exception as error:  # whatever a foreign or truncated file makes the reader raise
        raise UserError(
            f"{path} is damaged, or no checkpoint of this project; leave it out or start anew"
        ) from error
    return dict(checkpoint)


def _load_folder(folder: Path) -> Model | GAN:
    data = _read_settings(folder / "data.json", DATA_KEYS)
    if (folder / "generator").is_dir():
        return GAN(_network(Generator, *_saved(folder / "generator")), data)
    scheduler = _read_object(folder / "scheduler" / "scheduler_config.json")
    settings, state = _saved(folder / "unet")
    schedule = _schedule(scheduler)
    return Model(
        _denoiser(settings, state, schedule),
        schedule,
        find_prediction(scheduler["prediction_type"]),
        _read_settings(folder / "sampling.json", SAMPLING_KEYS),
        data,
    )


def _load_checkpoint(path: Path) -> Model | GAN:
    checkpoint = read_checkpoint(path)
    description = checkpoint["model"]
    averaged = checkpoint["callbacks"].get("EMA")
    raw = checkpoint["state_dict"].items()
    state = {key.removeprefix("net."): value for key, value in raw if key.startswith("net.")}
    if averaged:
        state = averaged["net"]
    if "generator" in description:
        return GAN(_network(Generator, description["generator"], state))
    schedule = _schedule(description["schedule"])
    return Model(
        _denoiser(description["net"], state, schedule),
        schedule,
        find_prediction(description.get("drawn_as", description["prediction"])),
        _settings(path, checkpoint.get("sampling", {}), SAMPLING_KEYS),
    )


def _saved(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A saved network's settings and weights."""
    config = _read_object(folder / "config.json")
    # Names with an underscore are diffusers' own; which class to build is not for a file to say.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    return settings, load_tensors(folder / SAFETENSORS_WEIGHTS_NAME)[0]


def _denoiser(
    settings: dict[str, Any], state: dict[str, Tensor], schedule: NoiseSchedule
) -> DiffusionNet:
    """A diffusion model's network, checked."""
    net: DiffusionNet = _network(kind_of_net(settings), settings, state)
    if isinstance(net, TakesPositions):
        net.check()
    detail = detail_part(net)
    if detail is not None and len(detail.noise_to_signal) != schedule.timesteps:
        raise ValueError("the network was trained with another number of timesteps")
    return net


def _network(kind: type[Net], settings: dict[str, Any], state: dict[str, Tensor]) -> Net:
    with nothing_allocated():
        net = kind(**settings)
    fill(net, state)
    net.eval()
    return net


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _read_settings(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    """The settings of a file that may be missing."""
    return _settings(path, _read_object(path) if path.is_file() else {}, kinds)


def _settings(path: Path, content: dict[str, Any], kinds: dict[str, type]) -> dict[str, Any]:
    """Settings of a file, checked; those that nothing here knows are left out."""
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
        move(source, target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    move(target, old)
    move(source, target)
    shutil.rmtree(old)
