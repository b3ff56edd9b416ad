"""Draw: ``python -m iclevr_diffusion.sample weights=… labels='red cube, blue sphere' n=8``."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.sampling import Sampler, Step, sample
from iclevr_diffusion.door import door
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.export import Model, load_model
from iclevr_diffusion.labels import LabelSet, check, encode, parse
from iclevr_diffusion.pictures import Strip, grid, save_picture
from iclevr_diffusion.rng import image_generators

STRIP_PICTURES = 4


@door("sample")
def main(cfg: DictConfig) -> None:
    label_set = parse(cfg.labels) if isinstance(cfg.labels, str) else check(cfg.labels)
    if not 1 <= cfg.n <= 1024:
        raise UserError(f"n must be in 1..1024, got {cfg.n}")
    model = load_model(cfg.weights)
    sampler, guidance_scale = drawing_settings(cfg, model)
    strip = Strip(sampler.steps)
    images = draw(model, label_set, cfg, sampler, guidance_scale, strip)

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
    name = cfg.sampler.name or author["sampler"]
    steps = cfg.sampler.steps or author["steps"]
    scale = author["guidance_scale"] if cfg.guidance.scale is None else cfg.guidance.scale
    return Sampler(name, steps), scale


def draw(
    model: Model,
    label_set: LabelSet,
    cfg: DictConfig,
    sampler: Sampler,
    guidance_scale: float,
    strip: Strip,
) -> torch.Tensor:
    """``cfg.n`` pictures of one label set, (n, 3, H, W) in [-1, 1]; fills the strip on the way."""
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    schedule = model.schedule.to(device)
    denoiser = Denoiser(model.net.to(device), schedule, model.prediction, guidance_scale)
    labels = encode(label_set).expand(cfg.n, -1).to(device)
    generators = image_generators(cfg.seed, range(cfg.n), "sample")

    def keep_a_few(step: Step) -> None:
        strip(step._replace(x_t=step.x_t[:STRIP_PICTURES], x0=step.x0[:STRIP_PICTURES]))

    return sample(denoiser, labels, sampler, generators, model.image_shape, on_step=keep_a_few)


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
