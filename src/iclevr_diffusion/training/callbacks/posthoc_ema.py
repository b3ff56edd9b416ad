"""Averages of the weights whose length is chosen after the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.callbacks.checkpoint import is_last_epoch
from iclevr_diffusion.training.callbacks.ema import EveryUpdate, averaged_tensors
from iclevr_diffusion.training.power_ema import (
    SNAPSHOTS,
    check_length,
    decay,
    exponent,
    file_name,
    find_snapshots,
)
from iclevr_diffusion.utils.checks import check_at_least, check_choice
from iclevr_diffusion.utils.files import atomic_path

DTYPES = {"float16": torch.float16, "float32": torch.float32}


class PosthocEMA(EveryUpdate):
    """Stores power-function averages at regular intervals, as :mod:`~.training.power_ema`.

    From these snapshots an average of any length is reconstructed after the training. Sampling and
    scoring during the training still use the average of :class:`~.ema.EMA`.

    Args:
        folder: Folder of the run; the callback is given it.
        lengths: Lengths of the stored averages, relative to the training so far.
        every_n_updates: Optimizer updates between snapshots; there is one at the end as well.
        dtype: The dtype of the files: ``float16``, as in the paper's code, or ``float32``.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        folder: Path,
        lengths: Sequence[float] = (0.05, 0.1),
        every_n_updates: int = 1000,
        dtype: str = "float16",
    ) -> None:
        if not lengths or len({*lengths}) < len(lengths):
            raise ValueError(f"lengths must be different values, at least one; got {lengths}")
        for length in lengths:
            try:
                check_length(length)
            except ValueError as error:
                raise ValueError(f"lengths {error}") from None
        check_at_least("every_n_updates", every_n_updates, 1)
        check_choice("dtype", dtype, DTYPES)
        super().__init__()
        self.folder = folder / SNAPSHOTS
        self.lengths = list(lengths)
        self.every_n_updates, self.dtype = every_n_updates, DTYPES[dtype]
        self.averages: list[dict[str, Tensor]] = []
        self._epoch_has_ended = False

    @property
    def state_key(self) -> str:
        return "PosthocEMA"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        net = cast(TrainedModule, pl_module).net
        if not self.averages:
            self.averages = [_copies(averaged_tensors(net)) for _ in self.lengths]
        for average in self.averages:
            for name, value in average.items():
                average[name] = value.to(pl_module.device)
        if trainer.is_global_zero:  # of a run that was killed after its last checkpoint
            for snapshot in find_snapshots(self.folder):
                if snapshot.updates > self.updates:
                    snapshot.path.unlink()

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Update all averages with the weights of ``net``; the first update copies them."""
        self.updates += 1
        current = list(averaged_tensors(net).values())
        for length, average in zip(self.lengths, self.averages, strict=True):
            beta = decay(exponent(length), self.updates)
            torch._foreach_lerp_(list(average.values()), current, 1 - beta)

    def after_update(self, trainer: L.Trainer) -> None:
        if self.updates % self.every_n_updates == 0:
            self.save(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_has_ended = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_has_ended = True
        if is_last_epoch(trainer) and self.updates:
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Early stopping decides at the end of an epoch, after the other callbacks.
        if self._epoch_has_ended and trainer.should_stop and self.updates:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write a snapshot of each average atomically, in the first process."""
        if not trainer.is_global_zero:
            return
        for length, average in zip(self.lengths, self.averages, strict=True):
            stored = {name: value.to("cpu", self.dtype) for name, value in average.items()}
            with atomic_path(self.folder / file_name(self.updates, length)) as partial:
                save_file(stored, partial)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.averages = [_copies(average) for average in state_dict["averages"]]


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
