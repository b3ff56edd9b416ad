"""Draw: ``python -m iclevr_diffusion.sample weights=… labels='red cube, blue sphere' n=8``."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, sample
from iclevr_diffusion.door import door, user_settings
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.export import Model, load_model
from iclevr_diffusion.labels import check, encode, parse
from iclevr_diffusion.pictures import Strip, grid, save_picture
from iclevr_diffusion.rng import image_generators

MAX_PICTURES = 1024
CHUNK = 64  # pictures at once; none depends on the others


@door("sample")
def main(cfg: DictConfig) -> None:
    with user_settings():
        label_set = parse(cfg.labels) if isinstance(cfg.labels, str) else check(cfg.labels)
        if not 1 <= cfg.n <= MAX_PICTURES:
            raise UserError(f"n must be in 1..{MAX_PICTURES}, got {cfg.n}")
        model = load_model(cfg.weights)
        sampler, guidance_scale = drawing_settings(cfg, model)
        device = choose_device(cfg.device)
        net, schedule = model.net.to(device), model.schedule.to(device)
        denoiser = Denoiser(net, schedule, model.prediction, guidance_scale)
    labels = encode(label_set).expand(cfg.n, -1).to(device)
    generators = image_generators(cfg.seed, range(cfg.n), "sample")
    strip = Strip(sampler.steps)
    chunks = []
    for start in range(0, cfg.n, CHUNK):
        part = slice(start, start + CHUNK)
        watch = strip if cfg.strip and start == 0 else None
        chunks.append(
            sample(denoiser, labels[part], sampler, generators[part], model.image_shape, watch)
        )
    images = torch.cat(chunks)

    out = Path(cfg.out)
    print(save_picture(grid(images, columns=min(8, cfg.n)), out / "grid.png"))
    if cfg.strip:
        print(save_picture(strip.picture(), out / "strip.png"))
    print(
        f"{', '.join(label_set)}: {cfg.n} pictures, {sampler.name} {sampler.steps} steps,"
        f" guidance {guidance_scale:g}, seed {cfg.seed}"
    )


def drawing_settings(cfg: DictConfig, model: Model) -> tuple[Sampler, float]:
    """Sampler and guidance scale: what the user asked for, else what the weights' author used."""
    author: dict[str, Any] = {
        "sampler": "dpm_solver",
        "steps": 20,
        "guidance_scale": 1.0,
    } | model.sampling
    asked = {
        "sampler": cfg.sampler.name,
        "steps": cfg.sampler.steps,
        "guidance_scale": cfg.guidance.scale,
    }
    settings = author | {name: value for name, value in asked.items() if value is not None}
    sampler = Sampler(settings["sampler"], settings["steps"])
    sampler.scheduler(model.schedule)  # refuses more steps than there are timesteps
    return sampler, settings["guidance_scale"]


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from error


def quote_labels(arguments: list[str]) -> list[str]:
    """``labels=red cube, blue sphere`` as the shell hands it over, quoted for Hydra's grammar.

    A comma would otherwise ask for a sweep.
    """
    return [
        f"labels='{match[1]}'"
        if (match := re.fullmatch(r"labels=([^'\"\[].*)", argument))
        else argument
        for argument in arguments
    ]


if __name__ == "__main__":
    sys.argv[1:] = quote_labels(sys.argv[1:])
    main()
