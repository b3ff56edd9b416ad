"""The networks of this project's own evaluators."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS
from iclevr_diffusion.utils.checks import check_bool, check_choice

MAX_COUNT = 6
MAX_CHANNELS = 8192
START = 5.5  # about log 16², so that untrained logits are near 0

Outputs = tuple[Tensor, Tensor, Tensor]


class ResidualNet(nn.Module):
    """Classifies labels and colors of unclear shape, and counts objects.

    After residual blocks (He et al. 2016, arXiv 1512.03385), each of 16×16 positions is classified
    by itself. The logit of a label is the smooth maximum (log-sum-exp) over the positions, so color
    and shape come from one position. The count is linear in the mean features.

    Args:
        widths: Channels at 64×64, 32×32 and 16×16.
        hidden: Channels of the last hidden layer, F.
        unclear: Add an output per color for objects without a clear shape.

    Raises:
        ValueError: A number of channels is not in 1..8192, or there are not three widths.
    """

    kind = "residual"

    def __init__(
        self, widths: Sequence[int] = (24, 48, 112), hidden: int = 256, unclear: bool = False
    ) -> None:
        super().__init__()
        check_channels("widths", widths, 3)
        check_channels("hidden", [hidden], 1)
        self.widths, self.hidden, self.unclear = list(widths), hidden, unclear
        fine, middle, coarse = widths
        self.body = nn.Sequential(
            _conv(3, fine),
            nn.ReLU(),
            _Residual(fine, middle, 2),
            _Residual(middle, middle, 1),
            _Residual(middle, coarse, 2),
            _Residual(coarse, coarse, 1),
            _Residual(coarse, coarse, 1),
            nn.Conv2d(coarse, hidden, 1),
            nn.ReLU(),
        )
        self.labels = nn.Conv2d(hidden, NUM_LABELS + (len(COLORS) if unclear else 0), 1)
        self.count = nn.Linear(hidden, MAX_COUNT + 1)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, 64, 64) in [-1, 1] → logits (B, L) or (B, L + 8), of counts (B, 7), features."""
        positions = self.body(images)
        labels = self.labels(positions).flatten(2)
        features = positions.mean((2, 3))
        return labels.logsumexp(2) - START, self.count(4 * features), features


class AttentionNet(nn.Module):
    """A residual network with attention pooling: each label has attention weights of its own.

    After He et al. 2016, arXiv 1512.03385 (blocks), and Liu et al. 2021, arXiv 2107.10834 (a query
    for each label; here with one head and without a decoder). It has no outputs for unclear shapes.

    Args:
        widths: Channels at 64×64, 32×32, 16×16 and 8×8.
        hidden: Channels of the last hidden layer, F.

    Raises:
        ValueError: A number of channels is not in 1..8192, or there are not four widths.
    """

    kind = "attention"
    unclear = False

    def __init__(self, widths: Sequence[int] = (16, 40, 80, 144), hidden: int = 192) -> None:
        super().__init__()
        check_channels("widths", widths, 4)
        check_channels("hidden", [hidden], 1)
        self.widths, self.hidden = list(widths), hidden
        stem, *levels = widths
        blocks: list[nn.Module] = [_conv(3, stem), nn.ReLU()]
        for channels_in, channels in zip(widths, levels, strict=False):
            blocks += [_Residual(channels_in, channels, 2), _Residual(channels, channels, 1)]
        self.body = nn.Sequential(*blocks, nn.Conv2d(levels[-1], hidden, 1), nn.ReLU())
        self.attention = nn.Conv2d(hidden, NUM_LABELS, 1)
        self.labels = nn.Conv2d(hidden, NUM_LABELS, 1)
        self.count = nn.Linear(hidden, MAX_COUNT + 1)

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, 64, 64) in [-1, 1] → logits (B, L), count logits (B, 7), features (B, F)."""
        positions = self.body(images)
        weights = self.attention(positions).flatten(2).softmax(2)
        labels = (weights * self.labels(positions).flatten(2)).sum(2)
        features = positions.mean((2, 3))
        return labels, self.count(4 * features), features


Classifier = ResidualNet | AttentionNet
CLASSIFIERS: dict[str, type[ResidualNet] | type[AttentionNet]] = {
    kind.kind: kind for kind in (ResidualNet, AttentionNet)
}


def make_classifier(
    kind: str, widths: Sequence[int] | None, hidden: int | None, unclear: bool
) -> Classifier:
    """Make a network.

    Args:
        kind: ``residual`` or ``attention``.
        widths: None is the kind's default.
        hidden: None is the kind's default.
        unclear: Whether the network has outputs for objects without a clear shape.

    Raises:
        ValueError: There is no such kind, a number of channels is out of range, or the kind has no
            outputs for unclear shapes.
    """
    check_choice("kind", kind, CLASSIFIERS)
    check_bool("unclear", unclear)
    given = {"widths": widths, "hidden": hidden}
    settings = {name: value for name, value in given.items() if value is not None}
    if CLASSIFIERS[kind] is AttentionNet:
        if unclear:
            raise ValueError("kind=attention has no outputs for unclear shapes; set unclear=false")
        return AttentionNet(**settings)  # type: ignore[arg-type]
    return ResidualNet(**settings, unclear=unclear)  # type: ignore[arg-type]


def describe_classifier(net: Classifier) -> dict[str, object]:
    """Return the arguments of :func:`make_classifier` for a network like this."""
    return {"kind": net.kind, "widths": net.widths, "hidden": net.hidden, "unclear": net.unclear}


def check_channels(name: str, values: object, count: int) -> None:
    """Check that a setting holds ``count`` numbers of channels.

    Raises:
        ValueError: It does not.
    """
    if (
        not isinstance(values, list | tuple)
        or len(values) != count
        or not all(type(value) is int and 1 <= value <= MAX_CHANNELS for value in values)
    ):
        shown = values[0] if count == 1 and isinstance(values, list) else values
        numbers = "" if count == 1 else f"{count} numbers "
        raise ValueError(f"{name} must be {numbers}in 1..{MAX_CHANNELS}, got {shown!r:.60}")


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(channels_in, channels, stride)
        self.second = _conv(channels, channels)
        self.skip = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels_in, channels, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.second(torch.relu(self.first(x))))


def _conv(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
