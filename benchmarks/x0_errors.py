"""Measure the error of a network's estimate of x_0 at given noise levels, on held-out frames.

    python benchmarks/x0_errors.py outputs/ablation_positions/flow/seed0/flow/… errors.json

For each noise-to-signal ratio σ / α of the grid, the timestep nearest to it is taken; the noise is
the same for all networks. An error is the mean squared error over the pixels of x_0 in [-1, 1],
conditioned on the true labels and positions, without guidance. Estimates are clamped to [-1, 1], as
in sampling.
"""

import argparse
import json
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from iclevr_diffusion.cli.training_wiring import build_datamodule
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.models.protocol import DenoisingNetwork, position_prior
from iclevr_diffusion.utils.files import CONFIG, write_text
from iclevr_diffusion.utils.rng import keyed_generator

RATIOS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0)
FRAMES = 120  # of the validation split
BATCH = 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("json", type=Path, help="the file to write")
    arguments = parser.parse_args()
    cfg = OmegaConf.load(arguments.run / CONFIG)
    assert isinstance(cfg, DictConfig)
    model = load_model(arguments.run)
    assert isinstance(model, Model)
    net = cast(DenoisingNetwork, model.net)
    denoiser = Denoiser(net, model.schedule, model.prediction)
    x0, labels, positions = held_out(cfg, position_prior(model.net))
    write_text(arguments.json, json.dumps(errors(denoiser, x0, labels, positions), indent=2) + "\n")


def held_out(cfg: DictConfig, prior: Layout | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return validation frames with known positions: images, labels, positions (N, L, D)."""
    data = build_datamodule(cfg)
    data.with_positions = prior is not None
    data.with_headings = prior is not None and prior.has_headings
    data.prepare_data()
    data.setup("fit")
    rows = data.frames_to_measure()
    rows = rows[torch.linspace(0, len(rows) - 1, min(FRAMES, len(rows))).long()]
    positions = None if data.positions is None else data.positions[rows]
    return to_unit_range(data.frames.images[rows]), data.frames.labels[rows].float(), positions


@torch.no_grad()
def errors(
    denoiser: Denoiser, x0: Tensor, labels: Tensor, positions: Tensor | None
) -> list[dict[str, float]]:
    """Return the noise-to-signal ratio and the error of x_0 of each entry of the grid."""
    levels = denoiser.schedule.noise_to_signal()
    noise = torch.randn(x0.shape, generator=keyed_generator("x0_errors"))
    result = []
    for ratio in RATIOS:
        timestep = int((levels.log() - torch.tensor(ratio).log()).abs().argmin())
        x_t = denoiser.schedule.add_noise(x0, noise, torch.full((len(x0),), timestep))
        squares = []
        for rows in torch.arange(len(x0)).split(BATCH):
            where = None if positions is None else positions[rows]
            estimate = denoiser(x_t[rows], timestep, labels[rows], where)
            squares.append((estimate - x0[rows]).square().mean((1, 2, 3)))
        result.append(
            {"ratio": round(float(levels[timestep]), 4), "error": float(torch.cat(squares).mean())}
        )
    return result


if __name__ == "__main__":
    main()
