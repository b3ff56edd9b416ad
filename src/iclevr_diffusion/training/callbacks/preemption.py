"""Stop on a signal: save a checkpoint as soon as possible, and end the run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
import torch

from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints
from iclevr_diffusion.training.launchers import is_first
from iclevr_diffusion.utils.errors import Stopped
from iclevr_diffusion.utils.lightning_internals import callbacks_of, leave_signals_alone
from iclevr_diffusion.utils.signals import HANG_UP, handling

REQUEUE = getattr(signal, "SIGUSR1", None)  # sent by SLURM with --signal=SIGUSR1@90
PRIORITY = 1024  # larger than any signal number


class StopOnSignal(L.Callback):
    """After SIGTERM, SIGINT (Ctrl+C) or SIGHUP, saves a checkpoint and ends the run.

    The run ends before the next batch of training or validation, or before the next sampling step;
    with gradient accumulation, after the next optimizer step. All processes end together, whichever
    received the signal. A second Ctrl+C ends the run at once.

    In a SLURM job, SIGUSR1 does the same (``#SBATCH --signal=SIGUSR1@90``; it is sent to processes
    that srun started) and requeues the job.

    Lightning's handlers save a checkpoint at any moment and communicate with other processes from
    there; :meth:`handled` keeps them from being installed.

    Args:
        checkpoints: The callback that saves.
        every_n_steps: Interval at which the processes of several accelerators exchange signals
            during an epoch: each exchange makes the accelerators wait.

    Attributes:
        in_fit: Whether hooks will be called that can end the run; if not, a signal ends it at once.

    Raises:
        Stopped: From the hooks, once the checkpoint is saved; or by a second Ctrl+C.
    """

    def __init__(self, checkpoints: Checkpoints, every_n_steps: int = 1) -> None:
        self.checkpoints = checkpoints
        self.every_n_steps = every_n_steps
        self.in_fit = False
        self._signum: int | None = None

    @contextmanager
    def handled(self, trainer: L.Trainer) -> Iterator[None]:
        """Install the signal handlers for the duration of the context.

        Raises:
            Stopped: A signal was received outside of the training.
        """
        leave_signals_alone(trainer)
        # nohup ignores SIGHUP.
        closed = [hang_up for hang_up in HANG_UP if signal.getsignal(hang_up) != signal.SIG_IGN]
        signals = [signal.SIGTERM, signal.SIGINT, *closed]
        if REQUEUE is not None and "SLURM_JOB_ID" in os.environ:
            signals.append(REQUEUE)
        with handling(signals, self._note):
            yield

    def end_if_signalled(self) -> None:
        """End the run, without a checkpoint, if a signal was received that no hook handled.

        Raises:
            Stopped: There was one.
        """
        if self._signum is None:
            return
        if self._signum == REQUEUE and is_first():
            _requeue()
        name = signal.Signals(self._signum).name
        raise Stopped(f"{name}; the same command with resume=true continues", self._signum)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.in_fit = True  # the data is set up

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.checkpoints.gradient_is_pending and may_communicate(
            trainer, self.every_n_steps
        ):
            self.check(trainer)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Processes may have different numbers of validation batches, but all have a first one.
        if batch_idx == 0 or trainer.world_size == 1:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """End the run here if any process has received a signal; all processes must call this.

        Raises:
            Stopped: One has.
        """
        signum = self._signum or 0
        if trainer.world_size > 1:
            # If processes received different signals, the one that requeues the job counts.
            weight = signum + PRIORITY if signum == REQUEUE else signum
            vote = torch.tensor(weight, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(vote, reduce_op="max")) % PRIORITY
        if not signum:
            return
        name = signal.Signals(signum).name
        self.checkpoints.save(trainer)
        if signum == REQUEUE and trainer.is_global_zero:
            _requeue()
        newest = self.checkpoints.newest
        if newest is None:
            raise Stopped(f"{name} before the first step: there is nothing to save yet", signum)
        raise Stopped(
            f"{name} at step {trainer.global_step}, saved in {newest}:"
            " the same command with resume=true continues",
            signum,
        )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third one would interrupt the end
            raise Stopped("interrupted; resume=true continues from the last checkpoint", signum)
        if self._signum != REQUEUE:  # SLURM also sends SIGTERM later
            self._signum = signum
        if not self.in_fit:
            self.end_if_signalled()


def may_communicate(trainer: L.Trainer, every_n_steps: int) -> bool:
    """Return whether processes may communicate before this batch: every n steps on accelerators.

    The answer is the same in all processes.
    """
    alone = trainer.world_size == 1 or trainer.strategy.root_device.type == "cpu"
    return alone or trainer.global_step % every_n_steps == 0


def stop_if_signalled(trainer: L.Trainer) -> None:
    """End the run here if it has received a signal; for callbacks that take long."""
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.check(trainer)


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except OSError as error:
        code = error.errno or 1
    if code:
        print(f"scontrol requeue {job} failed with code {code}", file=sys.stderr)
