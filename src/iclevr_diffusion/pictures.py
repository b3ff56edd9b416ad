"""Pictures of what happens: grids, denoising strips, schedules, curves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from iclevr_diffusion.diffusion.sampling import Step
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.files import written_whole


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] → uint8 0..255 on the CPU, same shape.

    Raises:
        ValueError: a value is not finite.
    """
    if not images.isfinite().all():
        raise ValueError("pictures hold NaN or infinite values")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def grid(
    images: Tensor, columns: int = 8, captions: Sequence[str] = (), zoom: int = 2
) -> Image.Image:
    """One picture of N pictures, row by row.

    Args:
        images: (N, 3, H, W), uint8, or float in [-1, 1].
        columns: pictures a row.
        captions: a text under each picture, or none; a line break at each ", ".
        zoom: whole-number enlargement, without smoothing.
    """
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    size = pixels.shape[-1] * zoom
    pixels = pixels.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    lines = max((caption.count(", ") + 1 for caption in captions), default=0)
    margin = 13 * lines + 2 if lines else 0
    columns = min(columns, len(pixels))
    padded = torch.nn.functional.pad(pixels, (0, 0, 0, margin), value=255)
    sheet = Image.fromarray(
        make_grid(padded, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()
    )
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(captions):
        row, column = divmod(index, columns)
        place = (4 + column * (size + 2), 4 + row * (size + margin + 2) + size)
        draw.multiline_text(place, caption.replace(", ", "\n"), fill=(40, 40, 40), spacing=2)
    return sheet


class Strip:
    """An ``on_step`` callback that keeps some of the steps of a sampling, to be seen side by side.

    Args:
        steps: steps of the whole sampling.
        frames: how many to keep, evenly spaced, the last one among them.
        pictures: how many of the batch to keep.
    """

    def __init__(self, steps: int, frames: int = 10, pictures: int = 4) -> None:
        frames = min(frames, steps)
        self._pictures = pictures
        self._wanted = {round((k + 1) * steps / frames) - 1 for k in range(frames)}
        self._kept: list[Step] = []

    def __call__(self, step: Step) -> None:
        if step.number in self._wanted:
            kept = slice(self._pictures)
            self._kept.append(step._replace(x_t=step.x_t[kept], x0=step.x0[kept]))

    def picture(self, zoom: int = 2) -> Image.Image:
        """Two rows for each picture: x_t, and under it the estimate of x_0."""
        x_t = torch.stack([step.x_t for step in self._kept], dim=1)
        x0 = torch.stack([step.x0 for step in self._kept], dim=1)
        rows = torch.stack([x_t, x0], dim=1)  # (B, 2, frames, C, H, W)
        return grid(rows.flatten(0, 2), columns=len(self._kept), zoom=zoom)


def schedule_plot(schedules: Mapping[str, NoiseSchedule]) -> Figure:
    """√ᾱ_t and √(1 - ᾱ_t), and the signal-to-noise ratio, over the timesteps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    signal, ratio = figure.subplots(1, 2)
    for index, (name, schedule) in enumerate(schedules.items()):
        color = f"C{index}"
        alpha_bar = schedule.alphas_cumprod.cpu()
        signal.plot(alpha_bar.sqrt(), color=color, label=f"{name} √ᾱ")
        signal.plot((1 - alpha_bar).sqrt(), color=color, linestyle="--", label=f"{name} √(1-ᾱ)")
        ratio.semilogy(alpha_bar / (1 - alpha_bar), color=color, label=name)
    signal.set(xlabel="timestep", title="signal and noise")
    ratio.set(xlabel="timestep", title="signal-to-noise ratio ᾱ / (1 - ᾱ)")
    for axes in (signal, ratio):
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    return figure


def curves_plot(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Losses over steps on the left; errors of x_0 and, where there are scores, those on the right.

    Args:
        rows: the rows of ``metrics.csv``: ``step`` and any of the logged metrics.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracies = sorted({key for row in rows for key in row if key.endswith("/accuracy")})
    for key in ("train/loss", "val/loss"):
        _plot_metric(left, rows, key)
    for key in accuracies or ["val/x0_error"]:
        _plot_metric(right, rows, key)
    left.set(xlabel="optimizer step", title="loss", yscale="log")
    right.set(xlabel="optimizer step", title="accuracy" if accuracies else "error of x₀")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def _plot_metric(axes: Axes, rows: Sequence[Mapping[str, float]], key: str) -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=key, marker="." if len(points) < 30 else None)


def save_picture(picture: Image.Image | Figure, path: Path) -> Path:
    """Write a PNG: whole, or not at all."""
    write: Callable[..., object] = (
        picture.save if isinstance(picture, Image.Image) else picture.savefig
    )
    with written_whole(path) as partial:
        write(partial, format="png")
    return path
