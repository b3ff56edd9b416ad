"""Stopping for a signal: with a checkpoint, at the next moment at which that is possible."""

import os
import signal
import subprocess
import sys
import threading
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

REQUEUE = getattr(signal, "SIGUSR1", None)  # what SLURM's --signal=SIGUSR1@90 sends
FIRST = 1024  # more than any signal's number


class StopOnSignal(L.Callback):
    """After SIGTERM or SIGINT (Ctrl+C), saves a checkpoint and ends the run.

    The run ends before the next batch of training or of validation, or before the next step of
    drawing; within accumulated batches, after the optimizer step that they are for. All processes
    end together, whichever of them got the signal. A second Ctrl+C does not wait.

    In a job of SLURM's, SIGUSR1 does the same (``#SBATCH --signal=SIGUSR1@90``; it reaches what was
    started with srun), and puts the job back into the queue.

    Lightning's own handlers save in the middle of whatever is going on, and talk to other processes
    from there; :meth:`handled` keeps them from being installed.

    Args:
        checkpoints: saves.
        every_n_steps: how often the processes ask one another during an epoch, where there are
            several accelerators: each time these wait.

    Attributes:
        in_fit: whether hooks will be called that end the run; otherwise a signal ends it at once.

    Raises:
        Stopped: from the hooks, once the checkpoint is there.
    """

    def __init__(self, checkpoints: Checkpoints, every_n_steps: int = 1) -> None:
        self.checkpoints = checkpoints
        self.every_n_steps = every_n_steps
        self.in_fit = False
        self._signum: int | None = None

    @contextmanager
    def handled(self, trainer: L.Trainer) -> Iterator[None]:
        """Inside, these signals are this callback's.

        Raises:
            Stopped: a signal came while no training was going on.
        """
        leave_signals_alone(trainer)
        signals = [signal.SIGTERM, signal.SIGINT]
        if REQUEUE is not None and _in_slurm():
            signals.append(REQUEUE)
        if threading.current_thread() is not threading.main_thread():
            signals = []  # only the main thread may
        before = {signum: signal.signal(signum, self._note) for signum in signals}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def end_if_signalled(self) -> None:
        """End the run, without a checkpoint, if a signal came that no hook has seen.

        Raises:
            Stopped: one did.
        """
        if self._signum is None:
            return
        if self._signum == REQUEUE and is_first():
            _requeue()
        name = signal.Signals(self._signum).name
        raise Stopped(f"{name}; the same command with resume=true goes on", self._signum)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.checkpoints.gradient_is_pending and may_ask(trainer, self.every_n_steps):
            self.check(trainer)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The processes may have different numbers of these batches: only of the first have all.
        if batch_idx == 0 or trainer.world_size == 1:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(trainer)

    def check(self, trainer: L.Trainer) -> None:
        """End the run here if any process has got a signal; every process has to call this.

        Raises:
            Stopped: it ends.
        """
        signum = self._signum or 0
        if trainer.world_size > 1:
            # Of two signals to two processes, that which puts the job back into the queue counts.
            weight = signum + FIRST if signum == REQUEUE else signum
            vote = torch.tensor(weight, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(vote, reduce_op="max")) % FIRST
        if not signum:
            return
        name = signal.Signals(signum).name
        self.checkpoints.save(trainer)
        if signum == REQUEUE and trainer.is_global_zero:
            _requeue()
        newest = self.checkpoints.newest
        if newest is None:
            raise Stopped(f"{name} before the first step; there is nothing to save yet", signum)
        raise Stopped(
            f"{name} at step {trainer.global_step}; {newest} has all of it:"
            " the same command with resume=true goes on",
            signum,
        )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._signum = signum
        if not self.in_fit:
            self.end_if_signalled()


def may_ask(trainer: L.Trainer, every_n_steps: int) -> bool:
    """Whether the processes may ask one another before this batch: each n-th step of accelerators.

    The answer is the same in all of them.
    """
    alone = trainer.world_size == 1 or trainer.strategy.root_device.type == "cpu"
    return alone or trainer.global_step % every_n_steps == 0


def stop_if_signalled(trainer: L.Trainer) -> None:
    """End the run here if it has got a signal; for callbacks that take long.

    Raises:
        Stopped: it ends.
    """
    for callback in callbacks_of(trainer, StopOnSignal):
        callback.check(trainer)


def _in_slurm() -> bool:
    return "SLURM_JOB_ID" in os.environ


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
