"""The contract between a denoising network and everything that trains it or samples with it.

A network of your own needs the members of :class:`DenoisingNetwork`, and diffusers' ``ModelMixin``
and ``ConfigMixin``, which save its arguments and its weights. The other protocols are optional: a
network that has their members is trained on crops, or has its FLOPs counted per expert.

Shapes: B images of C = 3 channels, H by W pixels; L labels.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from iclevr_diffusion.models.layout import Layout


class DenoisingNetwork(Protocol):
    """A network conditioned on labels, and on the objects' positions if it takes them.

    Attributes:
        num_labels: L, the size of the vocabulary.
        takes_positions: Whether ``forward`` needs ``positions``. Such a network carries the prior
            over positions as ``layout``; see :func:`position_prior`.
        config: The constructor's arguments, as diffusers' ``ConfigMixin`` registers them;
            ``image_size`` (H = W) is one of them.
    """

    num_labels: int
    takes_positions: bool

    @property
    def config(self) -> Mapping[str, Any]: ...

    def __call__(
        self, x_t: Tensor, timesteps: Tensor, labels: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Predict what the training objective asks for.

        Args:
            x_t: Noisy images, (B, 3, H, W).
            timesteps: int64, (B,).
            labels: float32, multi-hot, (B, L); a row of zeros is unconditional.
            positions: float32, (B, L, D), x to the right and y down, in [-1, 1], 0 where an image
                has no such label; (B, L, 4) if its ``layout`` has headings; None for a network that
                takes none.

        Returns:
            (B, 3, H, W).
        """


@runtime_checkable
class CropNetwork(Protocol):
    """A network that can be trained on crops; its ``forward`` takes their ``corner``, too."""

    @property
    def crop_multiple(self) -> int:
        """The number that the side of a crop must be a multiple of."""

    def fit_statistics(self, images: Tensor, noise_to_signal: Tensor) -> None:
        """Fit the buffers that are not trained by gradients.

        Args:
            images: Training images, uint8, (N, 3, H, W).
            noise_to_signal: Noise-to-signal ratio of each timestep, (T,).
        """

    def crop_flops(self, size: int) -> int:
        """Count the operations of one pass of the trained part over a crop of size² pixels."""


@runtime_checkable
class PreconditionedNetwork(Protocol):
    """A network that may convert its output to x_0 by itself, for variance-preserving schedules.

    Attributes:
        estimates_x0: Whether it does. Then it needs the prediction ``sample``.
    """

    estimates_x0: bool


@runtime_checkable
class ExpertNetwork(Protocol):
    """A network made of experts, one of which handles each noise level."""

    def noise_experts(self) -> Sequence[nn.Module]:
        """Return the experts."""


@runtime_checkable
class CheckedNetwork(Protocol):
    """A network with buffers or weights that can be invalid although their shapes fit."""

    def check_weights(self, timesteps: int) -> None:
        """Check loaded weights against the number of timesteps of the schedule.

        Raises:
            ValueError: They are invalid.
        """


def mean_frame(net: object) -> Tensor:
    """Return the mean training frame of a network, or a zero, (), if the network has none.

    It is the network's attribute ``mean_frame``, float32, (C, H, W), in [-1, 1].
    """
    # Not a protocol: since Python 3.12, isinstance finds neither buffers nor forwarded attributes.
    frame: Tensor | None = getattr(net, "mean_frame", None)
    return torch.zeros(()) if frame is None else frame


def estimates_x0(net: object) -> bool:
    """Return whether the network's output is an estimate of x_0 by construction."""
    return isinstance(net, PreconditionedNetwork) and net.estimates_x0


def position_prior(net: DenoisingNetwork) -> "Layout | None":
    """Return the network's prior over positions; None if it takes no positions."""
    return cast("Layout", net.layout) if net.takes_positions else None  # type: ignore[attr-defined]


def forward_flops(net: nn.Module) -> int:
    """Count the operations of one call for one image; of experts, the most expensive one's."""
    size = cast(DenoisingNetwork, net).config["image_size"]
    parts = net.noise_experts() if isinstance(net, ExpertNetwork) else [net]
    return max(pass_flops(part, size) for part in parts)


def pass_flops(net: nn.Module, size: int) -> int:
    """Count the operations of one call for one image, or crop, of size² pixels."""
    return flops(net, *example_inputs(cast(DenoisingNetwork, net), size))


def example_inputs(
    net: DenoisingNetwork, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return x_t, timesteps, labels and positions of one image, or crop, of size² pixels."""
    labels = torch.zeros(1, net.num_labels)
    positions = None
    if net.takes_positions:
        prior = position_prior(net)  # an expert for low noise has none
        positions = torch.zeros(1, net.num_labels, 2 if prior is None else prior.dimensions)
    return torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long), labels, positions


def flops(net: nn.Module, *inputs: Tensor | None) -> int:
    """Count the floating-point operations of one call.

    Matrix products and convolutions are counted, a multiply-add as two operations. Of the inputs
    only the shapes and dtypes matter, for most networks: on the meta device nothing is computed.
    """
    try:
        return _counted(net, torch.device("meta"), inputs)
    except RuntimeError:  # a network of a user's that needs values, or tensors on another device
        return _counted(net, next(net.parameters()).device, inputs)


def _counted(net: nn.Module, device: torch.device, inputs: Sequence[Tensor | None]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # it imports triton

    copied = copy.deepcopy(net).to(device).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copied(*(None if tensor is None else tensor.to(device) for tensor in inputs))
    return int(counter.get_total_flops())
