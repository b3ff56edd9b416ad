"""Two denoisers in one network: each is used where it is better, by the noise level."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from iclevr_diffusion.models.checks import check_number
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.layout import Layout, TakesPositions
from iclevr_diffusion.models.uvit import UViT


class NoiseExperts(TakesPositions, ModelMixin, ConfigMixin):
    """``net(x_t, timesteps, labels)`` → x_0, (B, 3, H, W) in, (B, 3, H, W) out.

    After the expert denoisers of Balaji et al. 2022, arXiv 2211.01324, section 4.1: a U-ViT with
    positions settles what the image shows while there is much noise; below the noise-to-signal
    ratio ``switch``, a :class:`~.detail.DetailNet` refines it. Both predict x_0.

    Args:
        coarse_settings: of the :class:`~.uvit.UViT`, but for the image size; it needs positions.
            This part is trained before, by itself, and is frozen here.
        detail_settings: of the :class:`~.detail.DetailNet`, but for the image size.
        image_size: H = W in pixels.
        switch: noise-to-signal ratio √((1 - ᾱ) / ᾱ) below which ``detail`` is used, above 0.

    Raises:
        ValueError: a setting has a wrong type, is out of range, or contradicts another.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        coarse_settings: Mapping[str, Any],
        detail_settings: Mapping[str, Any],
        image_size: int = 64,
        switch: float = 0.35,
    ) -> None:
        super().__init__()
        check_number("net.switch", switch)
        for name, settings in (("coarse", coarse_settings), ("detail", detail_settings)):
            if not isinstance(settings, Mapping):
                raise ValueError(f"net.{name}_settings must be a mapping, got {settings!r:.60}")
        self.coarse = UViT(image_size=image_size, **coarse_settings).requires_grad_(False)
        if self.coarse.layout is None:
            raise ValueError("net.coarse must have positions=true")
        self.detail = DetailNet(image_size=image_size, **detail_settings)
        self.switch = switch

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """Where objects stand; that of the coarse network."""
        layout: Layout = self.coarse.layout
        return layout

    def forward(
        self, x_t: Tensor, timesteps: Tensor, labels: Tensor, corner: Tensor | None = None
    ) -> Tensor:
        """Estimate x_0.

        Args:
            x_t: (B, 3, H, W), noisy frames, or with ``corner`` crops of them.
            timesteps: int64, (B,).
            labels: float32, (B, 3 L), with positions, as :meth:`placed` gives them.
            corner: of crops, as :meth:`DetailNet.forward`; those all go to ``detail``.
        """
        is_low = self.detail.noise_to_signal[timesteps] < self.switch
        x0: Tensor
        if corner is not None or is_low.all():
            x0 = self.detail(x_t, timesteps, labels, corner)
            return x0
        if not is_low.any():
            x0 = self.coarse(x_t, timesteps, labels)
            return x0
        x0 = torch.empty(x_t.shape, device=x_t.device)
        for expert, rows in ((self.detail, is_low), (self.coarse, ~is_low)):
            x0[rows] = expert(x_t[rows], timesteps[rows], labels[rows]).to(x0.dtype)
        return x0

    def check(self) -> None:
        """Refuse what no training leaves.

        Raises:
            ValueError: the layout's density or the noise levels make no sense.
        """
        super().check()
        self.detail.check()

    def inner_weights(self) -> list[nn.Parameter]:
        """The inner weights of ``detail``, the only part that is trained."""
        weights: list[nn.Parameter] = self.detail.inner_weights()
        return weights


def detail_part(net: nn.Module) -> DetailNet | None:
    """The network that is trained on crops: this one, or one of its experts; None: neither."""
    if isinstance(net, NoiseExperts):
        detail: DetailNet = net.detail
        return detail
    return net if isinstance(net, DetailNet) else None
