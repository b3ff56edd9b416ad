"""Composed guidance, which combines single-label conditions; and the guidance modes by name."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from iclevr_diffusion.diffusion.guidance import Estimate, Guidance
from iclevr_diffusion.utils.checks import check_choice


@dataclass(frozen=True)
class ComposedGuidance(Guidance):
    """Composition of single-label conditions, after Liu et al. 2022 (arXiv 2206.01714).

    The network never sees two labels at once. Given its estimate u without labels and its estimates
    c_i with label i alone, x̂_0 = u + Σ_i w_i (c_i - u). At each noise level, this is the estimate
    for p(x) Π_i (p(x | i) / p(x))^w_i, which is p(x | all labels) if w_i = 1 and the labels are
    independent given x. The weight w_i is ``scale`` for a requested label and -``scale`` for a
    negated one. For a single label this equals joint guidance, bit for bit.

    With ``rescale``, the unguided estimate is that with weights of 1, and 0 for negated labels.

    Outside the noise interval the weights are 1, and 0 for negated labels; there, a single label
    takes one network call. In all other cases, an image takes one call per label with a nonzero
    weight, plus one.

    A network with positions gets each label with its own position. A negated object also has a
    position and is pushed away from it. Positions are sampled for the requested objects first, then
    for the negated ones.
    """

    mode: ClassVar[str] = "composed"

    def check_label_drop(self, label_drop: float | None) -> None:
        if label_drop == 0:
            raise ValueError(
                "guidance.mode=composed needs weights that were trained with dropped labels"
                " (guidance=cfg); these were not, so use guidance.mode=joint"
            )

    def check_labels(self, labels: Tensor) -> None:
        if self.scale == 1 and (labels < 0).any():
            raise ValueError("labels with 'not' need a guidance.scale other than 1")

    def calls(self, labels: Tensor, scale: float) -> Tensor:
        labels = self._weighted(labels, scale)
        return (labels != 0).sum(1) + self._needs_unconditional(labels, scale)

    def estimate(
        self,
        estimate: Estimate,
        x_t: Tensor,
        labels: Tensor,
        positions: Tensor | None,
        scale: float,
        mean: Tensor | float = 0.0,
    ) -> Tensor:
        labels = self._weighted(labels, scale)
        needs = self._needs_unconditional(labels, scale)
        image, label = labels.nonzero(as_tuple=True)  # one row per term, grouped by image
        alone = F.one_hot(label, labels.shape[1]) * labels.abs()[image]
        output = estimate(
            torch.cat([x_t[image], x_t[needs]]),
            torch.cat([alone, torch.zeros_like(labels[needs])]),
            None
            if positions is None
            else torch.cat(
                [positions[image] * alone[:, :, None], torch.zeros_like(positions[needs])]
            ),
        )
        unconditional = torch.zeros_like(x_t)
        unconditional[needs] = output[len(image) :]
        start, end = unconditional[image], output[: len(image)]
        requested = (labels[image, label] > 0).view(-1, 1, 1, 1)
        # With the rounding of joint guidance.
        extrapolated = torch.where(
            requested, torch.lerp(start, end, scale), torch.lerp(start, end, -scale)
        )
        present = labels != 0
        number = present.long().cumsum(1)[image, label] - 1
        counts = present.sum(1)

        def total(estimates: Tensor) -> Tensor:
            """Return u + Σ_i (e_i - u) of each image."""
            # Summed over an extra dimension, not scattered, so that GPU results are reproducible.
            terms = x_t.new_zeros(len(x_t), int(counts.max()), *x_t.shape[1:])
            terms[image, number] = estimates
            return terms.sum(1) - (counts - 1).view(-1, 1, 1, 1) * unconditional

        guided = total(extrapolated)
        if not self.rescale or scale == 1:
            return guided
        return self.rescaled(guided, total(torch.where(requested, end, start)), mean)

    @staticmethod
    def _weighted(labels: Tensor, scale: float) -> Tensor:
        """Set negated labels to zero where there is no guidance."""
        return labels.clamp(min=0) if scale == 1 else labels

    @staticmethod
    def _needs_unconditional(labels: Tensor, scale: float) -> Tensor:
        """Mark the images that need u, bool, (B,): all except single labels with weight 1."""
        return ((labels != 0).sum(1) != 1) | (scale != 1)

    def description(self) -> dict[str, Any]:
        return super().description() | {"guidance_mode": self.mode}

    def __str__(self) -> str:
        return f"composed {super().__str__()}"


GUIDANCE_MODES: dict[str, type[Guidance]] = {
    kind.mode: kind for kind in (Guidance, ComposedGuidance)
}


def guidance_of(mode: str, *settings: Any, **named: Any) -> Guidance:
    """Create the guidance for a mode, given the arguments of :class:`~.guidance.Guidance`.

    Raises:
        ValueError: The mode is unknown, or a setting is out of range.
    """
    check_choice("mode", mode, GUIDANCE_MODES)
    return GUIDANCE_MODES[mode](*settings, **named)
