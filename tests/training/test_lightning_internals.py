"""Everything that the project relies on in Lightning beyond its public interface.

If one of these tests fails with a new version of Lightning, see
``iclevr_diffusion/utils/lightning_internals.py``.
"""

import inspect
import signal
from collections import Counter

import lightning as L
import pytest
import torch
from lightning.fabric.loggers.tensorboard import TensorBoardLogger as FabricTensorBoardLogger
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from helpers import trainer as make_trainer
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.utils import lightning_internals as internals

BATCHES, EPOCHS = 4, 2


class Tiny(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(BATCHES, 1))

    val_dataloader = train_dataloader


class Probe(L.Callback):
    """Note what the internals say during a training."""

    def __init__(self):
        self.seen = []
        self.validations = Counter()
        self.loops = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(
            (
                batch_idx,
                internals.batches_started(trainer),
                internals.epochs_processed(trainer),
                internals.loggers_are_due(trainer),
                internals.validates_after(trainer, batch_idx + 1),
            )
        )
        self.loops[trainer.global_step] = internals.loops_after_batch(trainer, batch_idx + 1)

    def on_validation_start(self, trainer, pl_module):
        self.validations[trainer.global_step] += 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.loops[f"epoch {trainer.current_epoch}"] = internals.loops_after_epoch(trainer)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    probe, module = Probe(), Tiny()
    trainer = make_trainer(
        tmp_path_factory.mktemp("run"),
        [probe],
        max_epochs=EPOCHS,
        val_check_interval=2,
        log_every_n_steps=2,
    )
    trainer.fit(module)
    return trainer, module, probe


def test_progress_of_batches_and_epochs(fitted):
    _, _, probe = fitted
    assert [row[:3] for row in probe.seen] == [
        (batch, batch + 1, epoch) for epoch in range(EPOCHS) for batch in range(BATCHES)
    ]


def test_loggers_are_due_every_n_steps(fitted):
    assert [row[3] for row in fitted[2].seen] == [False, True] * (BATCHES * EPOCHS // 2)


def test_validation_follows_where_it_is_foreseen(fitted):
    _, _, probe = fitted
    foreseen = [step for step, row in enumerate(probe.seen, start=1) if row[4]]
    assert foreseen == sorted(probe.validations) == [2, 4, 6, 8]


def test_loop_states_have_the_counters_that_are_changed(fitted):
    _, _, probe = fitted
    between, validating, ended = (probe.loops[key] for key in (1, 2, "epoch 0"))
    progress = between["epoch_loop.batch_progress"]["current"]
    assert progress == dict.fromkeys(("ready", "completed", "started", "processed"), 1)
    assert between["epoch_loop.state_dict"]["_batches_that_stepped"] == 1
    validation = validating["epoch_loop.val_loop.batch_progress"]
    assert validation["current"]["ready"] == validation["total"]["started"] == 1
    assert ended["epoch_progress"]["current"]["completed"] == 1
    assert internals.batches_completed(ended) == 0
    assert internals.rescale_batches(probe.loops[6], 4, 2) == 4


def test_trainer_attributes(fitted):
    trainer, module, probe = fitted
    assert internals.attached_trainer(module) is trainer
    assert internals.attached_trainer(Tiny()) is None
    assert internals.callbacks_of(trainer, Probe) == [probe]
    assert internals.callbacks_of(trainer, EMA) == []
    assert internals.started_processes(trainer) == []
    assert internals.profile_folder(trainer) is None
    assert not internals.overfits(trainer)
    assert internals.loss_scaler(trainer) is None
    with internals.autocast(trainer):
        assert not torch.is_autocast_enabled("cpu")


def test_precision_has_an_autocast_context(tmp_path):
    trainer = make_trainer(tmp_path, precision="bf16-mixed")
    with internals.autocast(trainer):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_overfitted_batches_leave_one_of_the_validation(tmp_path):
    trainer = make_trainer(tmp_path, overfit_batches=0.1)
    assert internals.overfits(trainer)
    assert trainer.limit_val_batches == 0.1
    internals.validate_at_least_one_batch(trainer, 20)
    assert trainer.limit_val_batches == 0.1
    internals.validate_at_least_one_batch(trainer, 9)
    assert trainer.limit_val_batches == 1


def test_lightnings_signal_handlers_are_not_installed(tmp_path):
    assert hasattr(_SignalConnector, "register_signal_handlers")
    trainer = make_trainer(tmp_path, max_epochs=1)
    internals.leave_signals_alone(trainer)
    installed = []

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            installed.append(signal.getsignal(signal.SIGTERM))

    trainer.callbacks.append(Look())
    before = signal.getsignal(signal.SIGTERM)
    trainer.fit(Tiny())
    assert installed == [before]


def test_process_observer_is_replaced_for_a_while():
    name = "_launch_process_observer"
    observer = getattr(subprocess_script, name)
    assert name in inspect.getsource(_SubprocessScriptLauncher.launch)
    assert "self.procs" in inspect.getsource(_SubprocessScriptLauncher)
    with internals.without_process_observer():
        assert getattr(subprocess_script, name) is not observer
    assert getattr(subprocess_script, name) is observer


def test_slurm_environment_takes_the_given_numbers():
    assert "_validate_srun_variables" in vars(SLURMEnvironment)
    assert "validate_settings" in vars(SLURMEnvironment)
    environment = internals.slurm_environment(6, 1, 2)
    environment.validate_settings(7, 7)
    numbers = environment.world_size(), environment.local_rank(), environment.node_rank()
    assert numbers == (6, 1, 2)


def test_tensorboard_logger_passes_the_step_to_purge(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    internals.purge_tensorboard(logger, 7)
    assert logger._kwargs == {"purge_step": 7}
    assert "**self._kwargs" in inspect.getsource(FabricTensorBoardLogger.experiment.fget)


def test_wandb_logger_keeps_its_arguments_and_its_run(tmp_path):
    logger = WandbLogger(project="p", save_dir=tmp_path, offline=True)
    assert internals.wandb_arguments(logger)["project"] == "p"
    internals.set_wandb_run(logger, "run")
    assert "_experiment" in inspect.getsource(WandbLogger.experiment.fget)
    assert logger._experiment == "run"
