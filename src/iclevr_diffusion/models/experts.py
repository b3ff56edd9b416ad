"""Two denoisers in one network, one for high and one for low noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.layout import Layout
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.checks import check_choice, check_positive

NETWORK = "network"
COARSE: dict[str, type[nn.Module]] = {"UViT": UViT, "DetailNet": DetailNet}


class NoiseExperts(ModelMixin, ConfigMixin):
    """A network for high noise and a :class:`~.detail.DetailNet` for low noise; both predict x_0.

    After the expert denoisers of Balaji et al. 2022, arXiv 2211.01324, section 4.1: the coarse
    expert settles the content of the image; below the noise-to-signal ratio ``switch``, the detail
    expert refines it. The coarse expert has been trained before, on its own, and is frozen here.

    Args:
        coarse_settings: Arguments of the coarse expert, except for the image size and the
            vocabulary; it must take positions. ``network`` among them is its class: ``UViT``, which
            is the default, or ``DetailNet``.
        detail_settings: Arguments of the :class:`~.detail.DetailNet`, likewise; it takes no
            headings.
        image_size: H = W in pixels.
        switch: Noise-to-signal ratio √((1 - ᾱ) / ᾱ) below which the detail expert is used.
        num_labels: L, the size of the vocabulary.
        num_colors: As :class:`~.uvit.UViT`.

    Raises:
        ValueError: An argument has a wrong type, is out of range, or contradicts another.
    """

    takes_positions = True
    estimates_x0 = True

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        coarse_settings: Mapping[str, Any],
        detail_settings: Mapping[str, Any],
        image_size: int = 64,
        switch: float = 0.35,
        num_labels: int = NUM_LABELS,
        num_colors: int | None = None,
    ) -> None:
        super().__init__()
        check_positive("switch", switch)
        for name, settings in (("coarse", coarse_settings), ("detail", detail_settings)):
            if not isinstance(settings, Mapping):
                raise ValueError(f"{name}_settings must be a mapping, got {settings!r:.60}")
        shared = {"image_size": image_size, "num_labels": num_labels, "num_colors": num_colors}
        of_coarse = {NETWORK: "UViT"} | dict(coarse_settings)
        network = of_coarse.pop(NETWORK)
        check_choice(f"coarse.{NETWORK}", network, COARSE)
        self.coarse = _expert("coarse", COARSE[network], shared | of_coarse)
        self.coarse.requires_grad_(False)
        if self.coarse.layout is None:
            raise ValueError("coarse.positions must be true")
        self.layout.frozen = True
        self.detail = _expert("detail", DetailNet, shared | dict(detail_settings))
        for name, expert in (("coarse", self.coarse), ("detail", self.detail)):
            if isinstance(expert, DetailNet) and not expert.estimates_x0:
                raise ValueError(f"{name}.preconditioning must be true")
        self.num_labels = num_labels
        self.switch = switch

    @property
    def layout(self) -> Layout:
        """The prior over positions; the coarse expert's."""
        layout: Layout = self.coarse.layout
        return layout

    def forward(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        labels: Tensor,
        positions: Tensor | None = None,
        corner: Tensor | None = None,
    ) -> Tensor:
        """Estimate x_0, (B, 3, H, W).

        Args:
            x_t: Noisy images, or with ``corner`` crops of them, (B, 3, H, W).
            timesteps: int64, (B,).
            labels: float32, multi-hot, (B, L); a row of zeros is unconditional.
            positions: float32, (B, L, 2), x to the right and y down; (B, L, 4) if the coarse expert
                takes headings.
            corner: As :meth:`.detail.DetailNet.forward`; crops all go to the detail expert.
        """
        assert positions is not None
        is_low = self.detail.noise_to_signal[timesteps] < self.switch
        x0: Tensor
        if corner is not None or is_low.all():
            x0 = self.detail(x_t, timesteps, labels, positions, corner)
            return x0
        if not is_low.any():
            x0 = self.coarse(x_t, timesteps, labels, positions)
            return x0
        x0 = torch.empty(x_t.shape, device=x_t.device)
        for expert, rows in ((self.detail, is_low), (self.coarse, ~is_low)):
            output = expert(x_t[rows], timesteps[rows], labels[rows], positions[rows])
            x0[rows] = output.to(x0.dtype)
        return x0

    def noise_experts(self) -> Sequence[nn.Module]:
        """Return the coarse and the detail expert."""
        return self.coarse, self.detail

    @property
    def crop_multiple(self) -> int:
        """The number that the side of a crop must be a multiple of."""
        multiple: int = self.detail.crop_multiple
        return multiple

    @property
    def mean_frame(self) -> Tensor:
        """The mean training frame, float32, (C, H, W); the detail expert's."""
        frame: Tensor = self.detail.mean_frame
        return frame

    def fit_statistics(self, images: Tensor, noise_to_signal: Tensor) -> None:
        """Fit the buffers of the detail expert; as :meth:`.detail.DetailNet.fit_statistics`."""
        self.detail.fit_statistics(images, noise_to_signal)

    def crop_flops(self, size: int) -> int:
        """Count the operations of one pass of the detail expert over a crop of size² pixels."""
        return int(self.detail.crop_flops(size))

    def check_weights(self, timesteps: int) -> None:
        """Check loaded weights; as :meth:`.detail.DetailNet.check_weights`.

        Raises:
            ValueError: The position prior or the noise levels are invalid.
        """
        self.coarse.check_weights(timesteps)
        self.detail.check_weights(timesteps)

    def inner_weights(self) -> list[nn.Parameter]:
        """Return the inner weights of the detail expert, the only one that is trained."""
        weights: list[nn.Parameter] = self.detail.inner_weights()
        return weights


def _expert(name: str, network: type[nn.Module], settings: dict[str, Any]) -> Any:
    try:
        return network(**settings)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None
