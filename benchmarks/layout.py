"""Positions of objects: in real frames, and as sampled by the two layouts.

    python benchmarks/layout.py --root data/iclevr --json layout.json --plot docs/layout.png

``find_positions`` locates the objects in the frames with three objects. A layout is fitted to the
even sequences, as in training, and its samples are compared with the positions in the odd ones, by
the largest difference of the two cumulative distributions (the Kolmogorov-Smirnov statistic). The
difference between the two halves of the data is the baseline. Without ``--root`` the frames are
synthetic. ``--weights`` compares the layout of some weights instead, which was fitted to both
halves. The size of an object follows from its row.
"""

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from common import leave, machine, parser, table
from iclevr_diffusion.data.positions import FIRST, find_positions, fit_prior
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.models.layout import CLEARANCE, LAYOUTS, Layout
from iclevr_diffusion.utils.rng import image_generators

OBJECTS = 3
SIZE = 64  # pixels on each side
HELD_OUT = "held-out frames"
QUANTITIES = {
    "x": "column of the others, pixels",
    "y": "row of the others, pixels",
    "to_first": "distance to the first object, pixels",
    "between": "distance between the others, pixels",
    "apart_x": "columns between the others",
    "apart_y": "rows between the others",
    "closest": "distance of the closest pair, pixels",
}
SHARES = {
    "overlap_first": "the first and another overlap",
    "overlap_others": "the others overlap",
    "near": f"pairs closer than {CLEARANCE * SIZE / 2:.3g} pixels",
    "hidden": "objects more than half behind another's box",
    "border": "objects at the border",
}


def positions_of(labels: Tensor, positions: Tensor, first: Tensor) -> tuple[Tensor, int]:
    """Return the positions (N, 3, 2) in images of three objects, with the first object first.

    Args:
        labels: (N, L), multi-hot.
        positions: (N, L, 2).
        first: (2,), the position of first objects.

    Returns:
        The positions, and the number of images that are left out because one is unknown.
    """
    rows = labels.sum(1) == OBJECTS
    found = positions[rows][labels[rows] > 0].view(-1, OBJECTS, 2)
    known = found.isfinite().all(-1).all(-1)
    found = found[known]
    is_first = (found - first).abs().amax(2) < 1e-4
    order = is_first.int().argsort(dim=1, descending=True, stable=True)
    return found.gather(1, order[..., None].expand(-1, -1, 2)), int((~known).sum())


def boxes(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return half widths and half heights of objects at (…, 2), in units of half the image.

    An object is 8 pixels high at row 16 of 64 and 22 at row 48, and 3/4 as wide, because the image
    is resized from 4:3.
    """
    height = ((0.14 + 0.13 * positions[..., 1]) / 0.3).clamp(min=0.27)
    return 0.75 * height / 2, height / 2


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Return the share of the farther object's box that is behind the nearer one's, (N,)."""
    nearer = (one[:, 1] > other[:, 1])[:, None]
    front, back = torch.where(nearer, one, other), torch.where(nearer, other, one)
    share = torch.ones(len(one))
    for axis, (f, b) in enumerate(zip(boxes(front), boxes(back), strict=True)):
        low = torch.maximum(front[:, axis] - f, back[:, axis] - b)
        high = torch.minimum(front[:, axis] + f, back[:, axis] + b)
        share *= (high - low).clamp(min=0) / (2 * b)
    return share


def quantities(positions: Tensor) -> dict[str, Tensor]:
    """Compute the quantities to compare from positions (N, 3, 2), first objects first."""
    first, second, third = positions.unbind(1)
    others = torch.cat([second, third])
    pairs = [(first, second), (first, third), (second, third)]
    distances = torch.stack([(a - b).norm(dim=1) for a, b in pairs])
    pixels = SIZE / 2
    return {
        "x": (others[:, 0] + 1) * pixels,
        "y": (others[:, 1] + 1) * pixels,
        "to_first": distances[:2].flatten() * pixels,
        "between": distances[2] * pixels,
        "apart_x": (second - third)[:, 0].abs() * pixels,
        "apart_y": (second - third)[:, 1].abs() * pixels,
        "closest": distances.amin(0) * pixels,
    }


def shares(positions: Tensor) -> dict[str, float]:
    """Return the shares of overlapping pairs, near pairs, and objects at the border."""
    first, second, third = positions.unbind(1)
    with_first = torch.stack([overlaps(first, other) for other in (second, third)])
    between = overlaps(second, third)
    distances = torch.stack([(a - b).norm(dim=1) for a, b in ((first, second), (first, third))])
    distances = torch.cat([distances.flatten(), (second - third).norm(dim=1)])
    halves = torch.stack(boxes(positions), dim=-1)
    values = {
        "overlap_first": with_first > 0,
        "overlap_others": between > 0,
        "near": distances < CLEARANCE,
        "hidden": torch.cat([with_first.flatten(), between]) > 0.5,
        "border": (positions.abs() + halves > 1).any(-1),
    }
    return {name: round(float(value.float().mean()), 4) for name, value in values.items()}


def kolmogorov_smirnov(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of the cumulative distributions of samples (N,) and (M,)."""
    values = torch.cat([one, other]).sort().values
    at = [
        torch.searchsorted(sample.sort().values, values, right=True) / len(sample)
        for sample in (one, other)
    ]
    return float((at[0] - at[1]).abs().max())


def compared(one: Tensor, other: Tensor) -> dict[str, float]:
    """Return the statistic of each quantity of positions (N, 3, 2) and (M, 3, 2)."""
    a, b = quantities(one), quantities(other)
    return {name: round(kolmogorov_smirnov(a[name], b[name]), 4) for name in QUANTITIES}


def sampled(layout: Layout, labels: Tensor, name: str) -> Tensor:
    """Sample positions (N, 3, 2) for labels (N, L) of three objects each."""
    generators = image_generators(0, range(len(labels)), "layout")
    return positions_of(labels, layout.sample(labels, generators, name), layout.first)[0]


def plot(samples: dict[str, Tensor], title: str) -> Figure:
    """Plot the positions of the other objects, and a histogram of each quantity."""
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(3, 4).flatten()
    for axis, (name, positions) in zip(axes, samples.items(), strict=False):
        x, y = positions[:, 1:].flatten(0, 1).T.numpy()
        axis.hist2d(x, y, bins=SIZE, range=[[-1, 1], [-1, 1]], cmap="Greys")
        axis.set(title=f"others, {name}", ylim=(1, -1), aspect="equal")
    bars(axes[3], {name: shares(positions) for name, positions in samples.items()})
    of_each = {name: quantities(positions) for name, positions in samples.items()}
    for axis, (key, text) in zip(axes[4:], QUANTITIES.items(), strict=False):
        everything = torch.cat([values[key] for values in of_each.values()])
        # Bins of two pixels whose edges are neither pixel centers nor whole numbers of pixels.
        edges = torch.arange(everything.min().floor() - 0.25, everything.max() + 2, 2).numpy()
        for name, values in of_each.items():
            axis.hist(values[key].numpy(), edges, density=True, histtype="step", label=name)
        axis.set(xlabel=text, yticks=[])
    axes[-1].axis("off")
    axes[-1].legend(*axes[4].get_legend_handles_labels(), frameon=False, loc="center")
    return figure


def bars(axes: Axes, rows: dict[str, dict[str, float]]) -> None:
    for number, (name, values) in enumerate(rows.items()):
        positions = [index + 0.27 * (number - 1) for index in range(len(values))]
        axes.barh(positions, list(values.values()), height=0.25, label=name)
    axes.set_yticks(range(len(SHARES)), [textwrap.fill(text, 20) for text in SHARES.values()])
    axes.invert_yaxis()
    axes.tick_params(labelsize="x-small")
    axes.set(title="shares")


def locate(frames: Frames, first: Tensor) -> tuple[list[Tensor], Layout, int]:
    """Locate the objects, and fit a layout to the even sequences.

    Returns:
        The positions in even and odd sequences, the layout, and the number of images left out.
    """
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    even = frames.sequences % 2 == 0
    layout = Layout(SIZE)
    layout.set_prior(fit_prior(frames.labels[even], positions[even]))
    halves = [positions_of(frames.labels[half], positions[half], first) for half in (even, ~even)]
    return [half for half, _ in halves], layout, sum(unknown for _, unknown in halves)


def tables(figures: dict[str, Any], names: Iterable[str]) -> str:
    """Format the figures as two tables."""
    largest_differences = [
        {"quantity": text, **{name: figures[name]["ks"][key] for name in names}}
        for key, text in QUANTITIES.items()
    ]
    found = [
        {"share": text, **{name: figures[name]["shares"][key] for name in (HELD_OUT, *names)}}
        for key, text in SHARES.items()
    ]
    return f"{table(largest_differences)}\n\n{table(found)}"


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="the course's data; else synthetic frames")
    arguments.add_argument("--sequences", type=int, default=2000, help="synthetic ones (2000)")
    arguments.add_argument(
        "--weights", help="compare the layout of these weights; else a fitted one"
    )
    arguments.add_argument("--plot", type=Path, help="an image file for the histograms")
    options = arguments.parse_args()
    here = machine(torch.device("cpu"))
    source = choose_source(options.root, SIZE, "outputs/cache", options.sequences, 0)
    frames = source.load_frames()
    of_weights = load_model(options.weights).net.layout if options.weights else None
    first = torch.tensor(FIRST)
    (learned, held_out), fitted, unknown = locate(frames, first)
    layout = of_weights or fitted
    labels = frames.labels[frames.labels.sum(1) == OBJECTS]
    samples = {HELD_OUT: held_out}
    samples |= {name: sampled(layout, labels, name) for name in LAYOUTS}
    figures: dict[str, Any] = {
        "frames": source.description(),
        "layout_of": options.weights or "the even sequences",
        "images": {name: len(positions) for name, positions in samples.items()},
        "images_with_unknown_positions": unknown,
        "quantities": QUANTITIES,
        "shares": SHARES,
        HELD_OUT: {"shares": shares(held_out)},
        "other half": {"ks": compared(learned, held_out), "shares": shares(learned)},
    }
    for name in LAYOUTS:
        figures[name] = {
            "ks": compared(samples[name], held_out),
            "shares": shares(samples[name]),
        }
    print(tables(figures, ("other half", *LAYOUTS)))
    if options.plot:
        about = " ".join(str(value) for value in source.description().values())
        print(save_image(plot(samples, f"{OBJECTS} objects; frames: {about}"), options.plot))
    leave(figures | {"machine": here}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
