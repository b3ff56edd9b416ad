"""The LightningModule that all trained modules share: seeding, optimizer, clipping."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.training.optimizer import HasInnerWeights, OptimizerSettings
from iclevr_diffusion.utils import lightning_internals
from iclevr_diffusion.utils.rng import keyed_seed


class TrainedModule(L.LightningModule):
    """A network and its optimizer; base class of all trained modules.

    All random numbers are functions of (seed, epoch, batch): see :mod:`iclevr_diffusion.utils.rng`.

    Args:
        net: The network that is trained and averaged.
        optimizer: Settings of the optimizer.
        seed: Seed of all random numbers of the training.
        max_steps: Optimizer steps after which a decay of the learning rate ends, if the epochs do
            not end earlier; -1 for the end of the epochs.
        fixed_noise: Whether each epoch repeats the random numbers of the first one, so that the
            loss of a few frames can reach zero.

    Raises:
        ValueError: The optimizer is Muon, and the network has no ``inner_weights()``.
    """

    net: nn.Module
    can_train_longer = True  # whether a finished run may be resumed with more epochs

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerSettings,
        seed: int = 0,
        max_steps: int = -1,
        fixed_noise: bool = False,
    ) -> None:
        super().__init__()
        if optimizer.name == "muon" and not isinstance(net, HasInnerWeights):
            raise ValueError(
                f"optimizer=muon needs a network with inner_weights(), which {type(net).__name__}"
                " does not have; use adamw or adam"
            )
        self.net = net
        self.optimizer_settings = optimizer
        self.seed = seed
        self.max_steps = max_steps
        self.fixed_noise = fixed_noise
        self.vocabulary = ICLEVR_LABELS  # until fit_to_data()
        self.grad_norm: Tensor | None = None  # of the last optimizer step, before clipping
        self.batch_sizes_of_step: list[int] = []  # of the batches since the last optimizer step
        self.step_was_skipped = False  # the last step, whose gradient overflowed (16-mixed)
        self.val_loss = MeanMetric(nan_strategy="disable")  # NaN is not hidden

    @property
    def epoch_of_noise(self) -> int:
        """The epoch in the key of all random numbers."""
        return 0 if self.fixed_noise else self.current_epoch

    @property
    def is_logged(self) -> bool:
        """Whether the loggers receive this step's metrics.

        Passing on those of other steps would make the accelerator wait for nothing.
        """
        trainer = lightning_internals.attached_trainer(self)
        return trainer is not None and lightning_internals.loggers_are_due(trainer)

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Log as Lightning does, without searching the batch for its size.

        Only the mean over an epoch needs the size, and :meth:`log_mean` computes that one itself.
        In a batch without positions, Lightning finds two sizes and warns.
        """
        kwargs["batch_size"] = kwargs.get("batch_size") or 1  # log_dict() passes None
        super().log(*args, **kwargs)

    def log_mean(self, name: str, metric: MeanMetric, value: Tensor, frames: int) -> None:
        """Log the mean over the frames of all batches and processes.

        Lightning's own mean over uneven shares of several processes is wrong: it divides the number
        of frames as an integer. And ``nan_strategy="disable"`` ignores weights (torchmetrics issue
        3434), so each frame passes its own value. The given one is the mean over this batch.
        """
        metric.update(value.expand(frames))
        self.log(name, metric)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.optimizer_and_decay(self.net)

    def optimizer_and_decay(self, net: nn.Module) -> OptimizerLRSchedulerConfig:
        """Build an optimizer for a network, with the warm-up and decay of its learning rate."""
        settings = self.optimizer_settings
        optimizer = settings.build(net)
        total_steps = self.trainer.estimated_stepping_batches
        if self.max_steps > 0:
            total_steps = min(total_steps, self.max_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.lr_factor(step, total_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make random numbers of layers (dropout) a function of the batch, as all others are."""
        key = ("layers", self.seed, self.epoch_of_noise, batch_idx, self.global_rank)
        torch.manual_seed(keyed_seed(*key))
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.batch_sizes_of_step = []
        self.batch_sizes_of_step.append(len(batch.images))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backpropagate a mean loss, weighted by the batch's size relative to the step's first."""
        sizes = self.batch_sizes_of_step
        weight = sizes[-1] / sizes[0] if self.automatic_optimization else 1.0
        super().backward(loss * weight, *args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale the gradient to that of the mean over all images of the step; clip and log it.

        Lightning has divided the loss of each batch by ``accumulate_grad_batches``, even in an
        epoch's last step, which may have fewer batches.
        """
        if sizes := self.batch_sizes_of_step:
            share = sum(sizes) / (sizes[0] * self.trainer.accumulate_grad_batches)
            gradients = [weight.grad for weight in self.net.parameters() if weight.grad is not None]
            if share != 1:
                torch._foreach_div_(gradients, share)
        self.grad_norm = self.clip(self.net)
        self.note_overflow(self.grad_norm)
        if self.is_logged:
            if not self.step_was_skipped:
                self.log("train/grad_norm", self.grad_norm)
            self.log("train/lr", optimizer.param_groups[0]["lr"])

    def clip(self, net: nn.Module) -> Tensor:
        """Clip the global norm of a network's gradient; return the norm before, a scalar."""
        bound = self.optimizer_settings.clip_norm
        return nn.utils.clip_grad_norm_(net.parameters(), math.inf if bound is None else bound)

    @property
    def loss_scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of 16-mixed precision, which skips steps whose gradient overflows."""
        trainer = lightning_internals.attached_trainer(self)
        return None if trainer is None else lightning_internals.loss_scaler(trainer)

    def note_overflow(self, norm: Tensor) -> None:
        """Record whether the optimizer step, whose unscaled gradient has that norm, is skipped."""
        self.step_was_skipped = self.loss_scaler is not None and not bool(norm.isfinite())

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Advance the learning-rate schedule, unless the optimizer step was skipped."""
        if not self.step_was_skipped:
            super().lr_scheduler_step(scheduler, metric)

    def setup(self, stage: str) -> None:
        """Fit to the data module, which is set up; a checkpoint is restored later."""
        data: object = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage == "fit" and isinstance(data, DataModule):
            self.fit_to_data(data)

    def fit_to_data(self, data: DataModule) -> None:
        """Fit what is not trained by gradients, before the first step.

        Raises:
            ValueError: The network is for another number of labels.
        """
        expected, given = getattr(self.net, "num_labels", None), len(data.vocabulary)
        if expected not in (None, given):
            raise ValueError(f"the network has num_labels={expected}, but the data {given} labels")
        self.vocabulary = data.vocabulary

    def description(self) -> dict[str, Any]:
        """Plain values from which the model can be rebuilt; they must match on resume."""
        raise NotImplementedError

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description, and the names of the labels if they are not i-CLEVR's."""
        checkpoint["model"] = self.description()
        if self.vocabulary != ICLEVR_LABELS:
            checkpoint["model"]["labels"] = list(self.vocabulary.names)
