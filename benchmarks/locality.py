"""How far a condition reaches: the gradient of each pixel of x̂_0 with respect to each object.

    python benchmarks/locality.py --weights pretrained outputs/mine --json out.json --plot out.png

Bradley 2025, arXiv 2509.16447, ties generalization to more objects than training shows to scores
that are local: a pixel depends on the conditions near it alone. Here frames of three objects get
noise of several levels. For each object j, |∂x̂_0(pixel) / ∂ condition j| is taken at every pixel,
over the three channels, where the condition is the object's entry in the labels, or its position
(x and y) for a network that takes positions, and x̂_0 is the conditional estimate, not guided.

It is averaged by the distance of the pixel from the object. Two figures sum it up. *Reach* is the
mean distance, weighted by the gradient; that of a gradient that is equal everywhere is beside it.
*Cross* is the mean gradient at the other objects of the image, in parts of that at the object
itself: 0 for a local network, 1 for one that does not know where its objects are.

Without ``--root`` the frames are synthetic. Distances are in shares of the image's width. It needs
torch 2.12: older versions have no forward derivative of group normalization for such tensors.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import leave, machine, parser, table
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.synthetic.dataset import synthetic_frames
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.models.protocol import DenoisingNetwork, position_prior
from iclevr_diffusion.utils.rng import image_generators, randn

OBJECTS = 3
SEED = 7  # of the synthetic frames
NOISE_LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0)  # σ / α
PRESENT = 0.999  # a label's entry; at 1, the U-ViT's tokens clamp it, and have no derivative
BIN = 1 / 16  # of the image's width
BINS = 16
NEAR, APART = 3 / 32, 6 / 32  # pixels at an object, and the least distance of the others from it


class Scenes(NamedTuple):
    """N images of three objects: (N, 3, H, W), labels (N, L) and positions (N, L, 2)."""

    images: Tensor
    labels: Tensor
    positions: Tensor


def scenes(root: str | None, cache: str, size: int, count: int) -> Scenes:
    """Return the last frames of ``count`` sequences whose positions are known."""
    if root is None:
        frames = synthetic_frames(count, SEED, size)
    else:
        source = ICLEVR(root, size, cache)
        source.prepare_data()
        frames = source.load_frames()
    found = find_positions(frames.images, frames.labels, frames.sequences)
    known = found.isfinite().all(-1).all(-1) & (frames.labels.sum(1) == OBJECTS)
    rows = known.nonzero().flatten()[:count]
    return Scenes(to_unit_range(frames.images[rows]), frames.labels[rows], found[rows])


def estimate(model: Model, x_t: Tensor, timestep: int, labels: Tensor, positions: Tensor) -> Tensor:
    """Return the conditional estimate of x_0, not clamped; cubes have no heading."""
    net = cast(DenoisingNetwork, model.net)
    prior = position_prior(model.net)
    if prior is not None:
        positions = F.pad(positions, (0, prior.dimensions - positions.shape[-1]))
    denoiser = Denoiser(net, model.schedule, model.prediction)
    return denoiser.estimate(timestep, x_t, labels, positions if net.takes_positions else None)


def gradients(model: Model, data: Scenes, timestep: int) -> dict[str, Tensor]:
    """Return |∂x̂_0 / ∂ condition| of each object at each pixel, (N, 3, H, W), by condition.

    Each is a derivative along one direction of the input, computed forwards, at all pixels at once.
    """
    noise = randn(tuple(data.images.shape[1:]), image_generators(0, range(len(data.images)), "l"))
    x_t = model.schedule.add_noise(data.images, noise, torch.full((len(noise),), timestep))
    present = data.labels.nonzero()[:, 1].view(-1, OBJECTS)
    names = ["label", *(["position"] if model.net.takes_positions else [])]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for which in present.unbind(1):
        one = torch.zeros_like(data.labels).scatter_(1, which[:, None], 1.0)
        still = torch.zeros_like(data.positions)
        found["label"].append(_along(model, x_t, timestep, data, one, still).norm(dim=1))
        if "position" in found:
            both = [
                _along(model, x_t, timestep, data, torch.zeros_like(one), one[..., None] * axis)
                for axis in torch.eye(2)
            ]
            found["position"].append(torch.cat(both, 1).norm(dim=1))
    return {name: torch.stack(parts, 1) for name, parts in found.items()}


def _along(
    model: Model, x_t: Tensor, timestep: int, data: Scenes, labels: Tensor, positions: Tensor
) -> Tensor:
    """Return the derivative of x̂_0 along a direction of labels and positions, (N, 3, H, W)."""
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # the others have no forward derivatives
        _, result = torch.func.jvp(
            lambda y, p: estimate(model, x_t, timestep, y, p),
            (PRESENT * data.labels, data.positions),
            (labels, positions),
        )
    return cast(Tensor, result)


def distances(data: Scenes) -> Tensor:
    """Return the distance of each pixel from each object, (N, 3, H, W), in image widths."""
    size = data.images.shape[-1]
    centers = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    objects = data.positions[data.labels > 0].view(-1, OBJECTS, 2, 1, 1)
    return (torch.stack([x, y]) - objects).norm(dim=2) / 2


def figures(gradient: Tensor, distance: Tensor) -> dict[str, Any]:
    """Summarize gradients (N, 3, H, W) by distance, as the module's docstring says."""
    which = (distance / BIN).long().clamp(max=BINS)
    sums = torch.zeros(BINS + 1).index_add(0, which.flatten(), gradient.flatten())
    counts = torch.bincount(which.flatten(), minlength=BINS + 1)
    own, cross = [], []
    for one in range(OBJECTS):
        at_own = distance[:, one] <= NEAR
        others = [other for other in range(OBJECTS) if other != one]
        at_others = (distance[:, others] <= NEAR).any(1) & (distance[:, one] >= APART)
        own.append(gradient[:, one][at_own])
        cross.append(gradient[:, one][at_others])
    at_object = torch.cat(own).mean()
    return {
        "by_distance": [
            round(float(total / count), 7) if count else None
            for total, count in zip(sums[:BINS], counts[:BINS], strict=True)
        ],
        "reach": round(float((gradient * distance).sum() / gradient.sum()), 4),
        "reach_if_equal": round(float(distance.mean()), 4),
        "at_object": round(float(at_object), 7),
        "cross": round(float(torch.cat(cross).mean() / at_object), 4),
    }


def measure(
    name: str, root: str | None, cache: str, count: int, levels: Sequence[float]
) -> dict[str, Any]:
    """Measure some weights at each noise level."""
    model = load_model(name)
    if not isinstance(model, Model):
        raise SystemExit(f"{name}: a GAN has no noise levels")
    data = scenes(root, cache, model.image_shape[1], count)
    distance = distances(data)
    ratios = model.schedule.noise_to_signal().log()
    result = []
    for level in levels:
        timestep = int((ratios - math.log(level)).abs().argmin())
        found = gradients(model, data, timestep)
        by_condition = {key: figures(value, distance) for key, value in found.items()}
        result.append({"noise": level, "timestep": timestep, **by_condition})
    return {
        "weights": name,
        "network": type(model.net).__name__,
        "positions": bool(model.net.takes_positions),
        "image_size": model.image_shape[1],
        "images": len(data.images),
        "levels": result,
    }


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    return [
        {
            "weights": result["weights"],
            "noise": level["noise"],
            "condition": condition,
            "reach": f"{level[condition]['reach']:.3f} ({level[condition]['reach_if_equal']:.3f})",
            "cross": f"{level[condition]['cross']:.3f}",
        }
        for result in results
        for condition in ("label", "position")
        for level in result["levels"]
        if condition in level
    ]


def plot(results: Sequence[dict[str, Any]]) -> Figure:
    """Plot the gradient over the distance, in parts of that at the object; a line per level."""
    panels = [
        (result, condition)
        for result in results
        for condition in ("label", "position")
        if condition in result["levels"][0]
    ]
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    for axes, (result, condition) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for number, level in enumerate(result["levels"]):
            values = level[condition]["by_distance"]
            points = [
                ((index + 0.5) * BIN, value / level[condition]["at_object"])
                for index, value in enumerate(values)
                if value
            ]
            color = f"C{number}"
            axes.semilogy(*zip(*points, strict=True), color=color, label=f"{level['noise']:g}")
        axes.set_title(f"{result['weights']}: {condition}", fontsize=8)
        axes.set_xlabel("distance from the object / image width")
        axes.grid(alpha=0.3)
    axes = figure.axes[0]
    axes.set_ylabel("|∂x̂₀ / ∂ condition|, relative")
    axes.legend(title="σ / α", frameon=False, fontsize=7)
    return figure


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--weights", nargs="+", default=["pretrained"])
    arguments.add_argument("--root", help="the course's data; without, synthetic frames")
    arguments.add_argument("--cache", default="outputs/cache", help="of the course's frames")
    arguments.add_argument("--images", type=int, default=32)
    arguments.add_argument("--noise", nargs="+", type=float, default=NOISE_LEVELS)
    arguments.add_argument("--plot", type=Path, help="write a plot to this PNG file")
    options = arguments.parse_args()
    here = machine(torch.device("cpu"))
    results = [
        measure(name, options.root, options.cache, options.images, options.noise)
        for name in options.weights
    ]
    print(table(rows(results)))
    settings = {"bin": BIN, "near": NEAR, "apart": APART}
    leave({"machine": here, **settings, "results": results}, options.json)
    if options.plot:
        print(save_image(plot(results), options.plot))
    return 0


if __name__ == "__main__":
    sys.exit(main())
