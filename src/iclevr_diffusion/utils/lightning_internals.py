"""Everything in Lightning that this project uses beyond its public interface.

Each function documents what it relies on. ``tests/training/test_lightning_internals.py`` tests
them, so that a new version of Lightning that changes one of these fails there first. Lightning is
imported within functions: some callers must start without it.
"""

import copy
import math
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import lightning as L
    import torch
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

CallbackType = TypeVar("CallbackType")
LoopState = dict[str, Any]  # state of Lightning's fit loop, as in a checkpoint


def callbacks_of(trainer: "L.Trainer", kind: type[CallbackType]) -> list[CallbackType]:
    """Return the trainer's callbacks of one type, in order."""
    every = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in every if isinstance(callback, kind)]


def attached_trainer(module: "L.LightningModule") -> "L.Trainer | None":
    """Return the trainer of a module, or None. ``LightningModule.trainer`` raises without one."""
    return module._trainer


def loggers_are_due(trainer: "L.Trainer") -> bool:
    """Return whether the loggers receive this step's metrics (every ``log_every_n_steps``)."""
    return trainer._logger_connector.should_update_logs


def loss_scaler(trainer: "L.Trainer") -> "torch.amp.GradScaler | None":
    """Return the gradient scaler of 16-mixed precision; other precisions have none."""
    return getattr(trainer.precision_plugin, "scaler", None)


def autocast(trainer: "L.Trainer") -> AbstractContextManager[Any]:
    """Return a context in which networks run in the trainer's precision."""
    return trainer.precision_plugin.forward_context()


def leave_signals_alone(trainer: "L.Trainer") -> None:
    """Keep Lightning from installing its signal handlers.

    They save a checkpoint at any moment, in the middle of a batch, and communicate with other
    processes from there.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


@contextmanager
def without_process_observer() -> Iterator[None]:
    """Keep Lightning from watching the processes that it starts.

    Its thread kills the first process without a message when another one fails.
    """
    from lightning.pytorch.strategies.launchers import subprocess_script

    name = "_launch_process_observer"
    observer = getattr(subprocess_script, name)
    setattr(subprocess_script, name, lambda processes: None)
    try:
        yield
    finally:
        setattr(subprocess_script, name, observer)


def started_processes(trainer: "L.Trainer") -> Sequence["subprocess.Popen[bytes]"]:
    """Return the processes that this one has started for the other devices of its node, so far."""
    return getattr(trainer.strategy.launcher, "procs", [])


def overfits(trainer: "L.Trainer") -> bool:
    """Return whether ``overfit_batches`` is set. The attribute has no declared type."""
    return bool(trainer.overfit_batches)  # type: ignore[attr-defined]


def validate_at_least_one_batch(trainer: "L.Trainer", batches: int) -> None:
    """Raise the limit of validation to one of ``batches`` if it leaves less.

    ``overfit_batches`` sets this limit, too, and a share that leaves a training batch may leave no
    validation batch.
    """
    if trainer.limit_val_batches * batches < 1:
        trainer.limit_val_batches = 1


def profile_folder(trainer: "L.Trainer") -> Any:
    """Return the folder that the profiler writes to; None without a profiler.

    ``Trainer.profiler`` has no declared type, and is a pass-through without one.
    """
    from lightning.pytorch.profilers import PassThroughProfiler

    profiler = trainer.profiler  # type: ignore[attr-defined]
    return None if isinstance(profiler, PassThroughProfiler) else profiler.dirpath


def batches_started(trainer: "L.Trainer") -> int:
    """Return the number of batches that this epoch has begun, including those before a resume.

    Lightning restores its counters on resume, but not the position in the data: it sets the loader
    up before it reads the checkpoint.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def epochs_processed(trainer: "L.Trainer") -> int:
    """Return the number of epochs that have ended, except for their callbacks."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def loops_after_batch(trainer: "L.Trainer", batches: int) -> LoopState:
    """Return the state that the loops will have once the current batch is completed.

    ``on_train_batch_end`` runs between "processed" and "completed", so the counters are advanced.
    If validation follows, the state is that of a validation that was stopped at its first batch:
    Lightning then starts it again. If not, the logged step, which Lightning counts after this hook
    (and once more after a validation), is advanced.

    Args:
        trainer: Calls this from ``on_train_batch_end``, after an optimizer step.
        batches: Batches of this epoch, including this one.
    """
    loops = copy.deepcopy(trainer.fit_loop.state_dict())
    progress = loops["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, counts["processed"]))
    progress["is_last_batch"] = False
    if validates_after(trainer, batches):
        stopped = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        loops["epoch_loop.val_loop.batch_progress"].update(
            total=stopped, current=dict(stopped), is_last_batch=False
        )
    else:
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    return loops


def validates_after(trainer: "L.Trainer", batches: int) -> bool:
    """Return whether validation follows after so many batches of this epoch."""
    every_n_epochs = trainer.check_val_every_n_epoch or 1
    return (
        batches % (trainer.val_check_batch or math.inf) == 0
        and trainer.enable_validation
        and (trainer.current_epoch + 1) % every_n_epochs == 0
    )


def loops_after_epoch(trainer: "L.Trainer") -> LoopState:
    """Return the state that the loops will have at the first batch of the next epoch."""
    loops = copy.deepcopy(trainer.fit_loop.state_dict())
    epochs = loops["epoch_progress"]
    for counts in (epochs["total"], epochs["current"]):
        counts.update(dict.fromkeys(counts, counts["processed"]))
    batches = loops["epoch_loop.batch_progress"]
    batches["current"].update(dict.fromkeys(batches["current"], 0))
    batches["is_last_batch"] = False
    return loops


def rescale_batches(loops: LoopState, frames_before: int, frames: int) -> int:
    """Count the current epoch's batches in other units, in place.

    Args:
        loops: State of the loops.
        frames_before, frames: Frames per batch of all processes, before and now.

    Returns:
        The number of completed batches, in the new unit.
    """
    counts = loops["epoch_loop.batch_progress"]["current"]
    counts.update({key: n * frames_before // frames for key, n in counts.items()})
    return int(counts["completed"])


def batches_completed(loops: LoopState) -> int:
    """Completed batches of the current epoch."""
    return int(loops["epoch_loop.batch_progress"]["current"]["completed"])


def slurm_environment(world_size: int, local_rank: int, node_rank: int) -> "ClusterEnvironment":
    """Lightning's SLURM environment without its checks.

    Those refuse ``--ntasks``; :func:`iclevr_diffusion.training.launchers.check_processes` has
    checked the numbers.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    class Tasks(SLURMEnvironment):
        @staticmethod
        def _validate_srun_variables() -> None: ...

        def validate_settings(self, num_devices: int, num_nodes: int) -> None: ...

        def world_size(self) -> int:
            return world_size

        def local_rank(self) -> int:
            return local_rank

        def node_rank(self) -> int:
            return node_rank

    return Tasks()


def purge_tensorboard(logger: "TensorBoardLogger", steps: int) -> None:
    """Hide events from step ``steps`` on, which earlier processes wrote.

    The logger passes ``_kwargs`` on to the ``SummaryWriter`` that it creates when it is first used.
    """
    logger._kwargs["purge_step"] = steps


def wandb_arguments(logger: "WandbLogger") -> dict[str, Any]:
    """Return the arguments with which the logger calls ``wandb.init``; they may be changed."""
    return logger._wandb_init


def set_wandb_run(logger: "WandbLogger", run: Any) -> None:
    """Give the logger a run that is already initialized."""
    logger._experiment = run
