"""Exponential moving average of the network."""

import copy
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.utils.lightning_internals import callbacks_of


class EveryUpdate(L.Callback):
    """Calls :meth:`update` after each optimizer step.

    Steps that 16-mixed precision skips because of an overflow do not count. A GAN's step is one
    batch of the data, however many parts it is cut into.

    Attributes:
        updates: Number of updates so far, resumed runs included; subclasses increment it.
    """

    def __init__(self) -> None:
        self.updates = 0
        self._step = 0

    def update(self, net: nn.Module) -> None:
        """Update an average with the weights of ``net``; subclasses implement this."""
        raise NotImplementedError

    def after_update(self, trainer: L.Trainer) -> None:
        """Do nothing; subclasses may override this, which is called after each update."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # With accumulation, most batches end without an optimizer step.
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        module = cast(TrainedModule, pl_module)
        if not module.step_was_skipped:
            self.update(module.net)
            self.after_update(trainer)


class EMA(EveryUpdate):
    """Exponential moving average (EMA) of the network's weights, updated at each optimizer step.

    The average is a separate network, which sampling uses directly. Nothing is ever swapped into
    the model in training, so no interruption can mix the two up. At update n (0, 1, …) the decay is
    min(decay, (1 + n) / (10 + n)), so that the initial weights are soon forgotten.

    Args:
        decay: In [0, 1). With 0 the copy equals the network.

    Raises:
        ValueError: The decay is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        super().__init__()
        self.decay = decay
        self.net: nn.Module | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback's state in checkpoints; subclasses share it."""
        return "EMA"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Before Lightning restores a checkpoint, which then fills this copy.
        if self.net is None:
            module = cast(TrainedModule, pl_module)
            self.net = copy.deepcopy(module.net).eval().requires_grad_(False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.net is not None
        self.net.to(pl_module.device)
        if self.updates == 0:
            # Since setup(), the module may have fitted the network to the data.
            self.net.load_state_dict(cast(TrainedModule, pl_module).net.state_dict())

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Update the average with the weights of ``net``.

        Statistics of batch norms are averaged, too; integer buffers are copied, and frozen weights
        are left as they are.
        """
        assert self.net is not None
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = averaged_tensors(net)
        own: dict[str, Tensor] = {
            **dict(self.net.named_parameters()),
            **dict(self.net.named_buffers()),
        }
        torch._foreach_lerp_([own[name] for name in current], [*current.values()], 1 - decay)
        for name, value in net.named_buffers():
            if name not in current:
                own[name].copy_(value)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        assert self.net is not None
        return {"updates": self.updates, "net": self.net.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.net is not None
        self.updates = state_dict["updates"]
        self.net.load_state_dict(state_dict["net"])


def averaged_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that are averaged: trained weights, and buffers of floats."""
    tensors = {name: value for name, value in net.named_parameters() if value.requires_grad}
    return tensors | {name: v for name, v in net.named_buffers() if v.is_floating_point()}


def averaged_net(trainer: L.Trainer, module: TrainedModule) -> nn.Module:
    """Return the averaged network of an EMA callback, or without one the network itself."""
    averages = (callback.net for callback in callbacks_of(trainer, EMA))
    return next((net for net in averages if net is not None), module.net)
