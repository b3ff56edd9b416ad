"""Separate scores for the factors of an image: colors, shapes, their binding, number of objects.

Okawa et al. 2023, arXiv 2310.09336, ask whether a model composes factors as if each were learned on
its own, so that the share of images with all of them right is the product of the shares.

An image *shows* the labels that score above one half. Its colors are those of these labels and of
the objects of unclear shape. Colors and shapes are multisets: a red cube and a red sphere are two
reds.
"""

import math
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from iclevr_diffusion.data.factorization import Factorization, factorize
from iclevr_diffusion.data.labels import COLORS, Vocabulary
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.metrics import exactly_matched, requested, shown

FACTORS = ("color", "shape", "binding", "count")
FACTOR_TITLES = {
    "color": "colors right",
    "shape": "shapes right",
    "binding": "binding right, given both",
    "count": "count right",
    "product": "product",
    "joint": "all right",
    "joint_minus_product": "all right - product",
}
FACTOR_RANGES = dict.fromkeys(FACTOR_TITLES, (0.0, 1.0)) | {"joint_minus_product": (-1.0, 1.0)}
FACTOR_FORMATS = dict.fromkeys(FACTOR_TITLES, ".3f") | {"joint_minus_product": "+.3f"}
POSITIONS = ("center", "left", "right", "back", "front")
GROUPS = ("color", "shape", "position", "number")
AT_CENTER = 0.02  # largest distance from the first position that counts; a pixel is 0.03 wide


class FactorTotals:
    """Accumulates shares: of images with each factor right, of requested objects shown by group.

    The factors of an image:

    - *color*: the shown colors equal the requested colors, as multisets.
    - *shape*: the same for shapes. An unclear shape is never a requested one.
    - *binding*: among images with both right, exactly the requested labels are shown.
    - *count*: the number of objects is right, by the evaluator's own count if it can count one
      more, else by the labels and unclear objects that are shown.

    *joint* is the share of images with all four right, *product* the product of the four shares.

    Requested objects are grouped by color, by shape, by the number of objects requested in their
    image and, if positions are known, by position: at the first position of every training image
    (``center``), or else left or right of it, and behind or in front of it. The share of a group is
    the share of its requested objects that are shown.

    Args:
        vocabulary: The labels. Unless they are combinations of a color and a shape, there are no
            factors, and no groups by color or shape.
        max_count: The largest number of objects that the evaluator counts.
        center: (2,), the first position, x to the right and y down, in [-1, 1]; None if there are
            no positions.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_count: float, center: Tensor | None = None
    ) -> None:
        self.factorization = factorize(vocabulary)
        self.max_count, self.center = max_count, center
        self.right: Counter[str] = Counter()
        self.of: Counter[str] = Counter()
        self.exact: Counter[int] = Counter()
        self.images: Counter[int] = Counter()
        self.shown: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
        self.asked: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}

    @torch.no_grad()
    def add(
        self, output: ClassifierOutput, labels: Tensor, positions: Tensor | None = None
    ) -> None:
        """Add images.

        Args:
            output: The evaluator's output for B images.
            labels: (B, L), the requested labels.
            positions: (B, L, D), positions of the requested objects; None if unknown.
        """
        seen, true = shown(output.scores).cpu(), requested(labels).cpu()
        unclear = _unclear(output, len(seen))
        exact = exactly_matched(output, labels).cpu()
        self._add_groups(seen, true, None if positions is None else positions.cpu())
        for count in true.sum(1).unique().tolist():
            of_count = true.sum(1) == count
            self.images[count] += int(of_count.sum())
            self.exact[count] += int((exact & of_count).sum())
        if self.factorization is not None:
            self._add_factors(output, seen, true, unclear, labels.cpu(), self.factorization)

    def _add_factors(
        self,
        output: ClassifierOutput,
        seen: Tensor,
        true: Tensor,
        unclear: Tensor,
        labels: Tensor,
        factors: Factorization,
    ) -> None:
        colors = factors.count_colors(seen.long())
        if unclear.shape[1] and factors.colors == COLORS:
            colors = colors + unclear.long()
        color = (colors == factors.count_colors(true.long())).all(1)
        shape = (factors.count_shapes(seen.long()) == factors.count_shapes(true.long())).all(1)
        shape &= ~unclear.any(1)
        both, binding = color & shape, (seen == true).all(1)
        wanted = labels.sum(1)
        count = seen.sum(1) + unclear.sum(1) == true.sum(1)
        if output.counts is not None:
            count = torch.where(wanted < self.max_count, output.counts.cpu() == wanted, count)
        everything = torch.ones_like(both)
        for name, right, of in (
            ("color", color, everything),
            ("shape", shape, everything),
            ("binding", both & binding, both),
            ("count", count, everything),
            ("joint", both & binding & count, everything),
        ):
            self.right[name] += int(right.sum())
            self.of[name] += int(of.sum())

    def _add_groups(self, seen: Tensor, true: Tensor, positions: Tensor | None) -> None:
        members: dict[str, Mapping[str, Tensor]] = {
            "number": {str(k): (true.sum(1) == k)[:, None] for k in true.sum(1).unique().tolist()}
        }
        if self.factorization is not None:
            parts = self.factorization
            members["color"] = {c: parts.color_of == i for i, c in enumerate(parts.colors)}
            members["shape"] = {s: parts.shape_of == i for i, s in enumerate(parts.shapes)}
        if positions is not None and self.center is not None:
            members["position"] = sides(positions, self.center.cpu())
        for group, masks in members.items():
            for name, mask in masks.items():
                if asked := int((true & mask).sum()):
                    self.asked[group][name] += asked
                    self.shown[group][name] += int((true & seen & mask).sum())

    def factors(self) -> dict[str, float]:
        """Return the shares named in :data:`FACTOR_TITLES`.

        Binding and product are left out if no image has both colors and shapes right. The result is
        empty without a factorization or without images.
        """
        if not self.of["joint"]:
            return {}
        result = {name: self.right[name] / self.of[name] for name in FACTORS if self.of[name]}
        joint = self.right["joint"] / self.of["joint"]
        if len(result) < len(FACTORS):
            return {**result, "joint": joint}
        product = math.prod(result.values())
        return {
            **result,
            "product": product,
            "joint": joint,
            "joint_minus_product": joint - product,
        }

    def shown_by_group(self) -> dict[str, dict[str, float]]:
        """Return the share of requested objects that are shown, by group and member."""
        return {
            group: {name: self.shown[group][name] / asked[name] for name in _in_order(group, asked)}
            for group, asked in self.asked.items()
            if asked
        }

    def exact_by_number(self) -> dict[str, float]:
        """Return the exact match by number of requested objects."""
        return {str(count): self.exact[count] / self.images[count] for count in sorted(self.images)}


def sides(positions: Tensor, center: Tensor) -> dict[str, Tensor]:
    """Mark the objects on each side of the first position, bool (B, L) per :data:`POSITIONS`.

    Args:
        positions: (B, L, D), x to the right and y down, in [-1, 1].
        center: (2,).
    """
    x, y = (positions[..., :2] - center).unbind(-1)
    at_center = torch.maximum(x.abs(), y.abs()) <= AT_CENTER
    marks = (at_center, x < 0, x > 0, y < 0, y > 0)
    away = {name: mark & ~at_center for name, mark in zip(POSITIONS, marks, strict=True)}
    return away | {"center": at_center}


def _unclear(output: ClassifierOutput, images: int) -> Tensor:
    """Return the unclear objects by color, bool, (B, 8); (B, 0) if it does not look for them."""
    if output.unclear is None:
        return torch.zeros(images, 0, dtype=torch.bool)
    return shown(output.unclear).cpu()


def _in_order(group: str, names: Mapping[str, int]) -> list[str]:
    if group == "number":
        return sorted(names, key=int)
    return [name for name in POSITIONS if name in names] if group == "position" else list(names)
