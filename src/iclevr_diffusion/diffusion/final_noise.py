"""Noise for the last estimate of x_0, without which generated images lack the grain of real ones.

The estimate is the mean of p(x_0 | x_t). What cannot be told from noise at the last timestep, such
as most of the grain of rendered frames, is averaged out of it. A sample of p(x_0 | x_t) also has
the covariance of the estimate's error. Bao et al. 2022, arXiv 2201.06503, use its mean over images
and values for the steps of DDPM. Here it is the mean over images and pixels, (C, C): at the low
noise of a last timestep the error is nearly white, but its channels are correlated.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.utils.rng import keyed_generator, randn

Covariance = Sequence[Sequence[float]]
CHANNELS = 3
FRAMES = 256  # for the covariance, at most
BATCH = 32
ROUNDING = (2 / 255) ** 2 / 12  # variance of the rounding to 8 bits, in [-1, 1]


def noise_factor(covariance: Covariance) -> Tensor:
    """Return the symmetric square root of a covariance, float32, (C, C).

    Raises:
        ValueError: It is not a symmetric (3, 3), or has a negative eigenvalue.
    """
    rows = [list(row) for row in covariance if isinstance(row, Sequence)]
    is_square = [len(row) for row in rows] == [CHANNELS] * CHANNELS
    if not is_square or any(type(x) not in (int, float) for x in chain(*rows)):
        raise ValueError(f"final_covariance must be 3 rows of 3 numbers, got {covariance!r:.60}")
    matrix = torch.tensor(rows, dtype=torch.float64)
    if not matrix.isfinite().all() or not torch.allclose(matrix, matrix.T):
        raise ValueError("final_covariance must be symmetric and finite")
    values, vectors = torch.linalg.eigh(matrix)
    if values.min() < -1e-6 * values.abs().max():
        raise ValueError("final_covariance must not have negative eigenvalues")
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root.float()


def add_noise(images: Tensor, factor: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Add normal noise, independent between pixels, to images (B, C, H, W).

    Args:
        images: In [-1, 1].
        factor: (C, C), as :func:`noise_factor` returns it.
        generators: One per image, on the CPU.
    """
    noise = torch.einsum("ij,bjhw->bihw", factor, randn(tuple(images.shape[1:]), generators))
    return images + noise.to(images)


@torch.no_grad()
def measure_covariance(
    denoiser: Denoiser, timestep: int, images: Tensor, labels: Tensor, positions: Tensor | None
) -> list[list[float]]:
    """Measure the covariance, (C, C), of the error of the estimate of x_0 between the channels.

    Frames are rounded to 8 bits, as generated images will be. So the variance of the rounding is
    not part of it.

    Args:
        denoiser: Estimates x_0; its guidance is not used.
        timestep: The last timestep of sampling.
        images: uint8, (N, C, H, W), frames that the network was not trained on, if there are any.
        labels: (N, L), multi-hot.
        positions: (N, L, D), finite, or None for a network that takes none.
    """
    chosen = torch.linspace(0, len(images) - 1, min(FRAMES, len(images))).long()
    generator = keyed_generator("final noise")
    total = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    for rows in chosen.split(BATCH):
        x0 = to_unit_range(images[rows])
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        steps = torch.full((len(rows),), timestep, device=x0.device)
        x_t = denoiser.schedule.add_noise(x0, noise, steps)
        at = None if positions is None else positions[rows]
        estimate = denoiser.estimate(timestep, x_t, labels[rows].float(), at)
        error = (x0 - estimate).cpu().double().transpose(0, 1).flatten(1)
        total += error @ error.T
    covariance = total / (len(chosen) * images[0, 0].numel())
    values, vectors = torch.linalg.eigh(covariance - ROUNDING * torch.eye(CHANNELS))
    result: list[list[float]] = (vectors * values.clamp(min=0) @ vectors.T).tolist()
    return result
