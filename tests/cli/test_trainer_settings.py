"""Every argument of Lightning's trainer works as Lightning says, or is refused by its name."""

import inspect
from dataclasses import fields

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.profilers import AdvancedProfiler
from omegaconf import open_dict

from helpers import datamodule, slow, tiny_gan, tiny_module, trainer
from iclevr_diffusion.cli import fast_dev_run
from iclevr_diffusion.cli import trainer as ours
from iclevr_diffusion.cli.command import CONF, _trainer_word
from iclevr_diffusion.cli.schema import Sample, Train, Trainer
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData, UnclearSettings
from iclevr_diffusion.training.fit import check_limits
from iclevr_diffusion.utils.errors import UserError

PASSED_ON = {  # a value, and what Lightning's trainer has made of it
    "accelerator": ("cpu", lambda t: t.strategy.root_device.type == "cpu"),
    "strategy": ("ddp", lambda t: "DDP" in type(t.strategy).__name__),
    "devices": (2, lambda t: t.num_devices == 2),
    "num_nodes": (2, lambda t: t.num_nodes == 2),
    "precision": ("bf16-mixed", lambda t: t.precision == "bf16-mixed"),
    "max_epochs": (7, lambda t: t.max_epochs == 7),
    "limit_train_batches": (0.5, lambda t: t.limit_train_batches == 0.5),
    "limit_val_batches": (0, lambda t: not t.enable_validation),
    "overfit_batches": (2, lambda t: t.limit_train_batches == t.limit_val_batches == 2),
    "accumulate_grad_batches": (3, lambda t: t.accumulate_grad_batches == 3),
    "check_val_every_n_epoch": (3, lambda t: t.check_val_every_n_epoch == 3),
    "val_check_interval": (5, lambda t: t.val_check_interval == 5),
    "num_sanity_val_steps": (-1, lambda t: t.num_sanity_val_steps == float("inf")),
    "log_every_n_steps": (3, lambda t: t.log_every_n_steps == 3),
    "enable_progress_bar": (False, lambda t: t.progress_bar_callback is None),
    "enable_model_summary": (True, lambda t: any(isinstance(c, ModelSummary) for c in t.callbacks)),
    "deterministic": (True, lambda t: torch.are_deterministic_algorithms_enabled()),
    "benchmark": (True, lambda t: torch.backends.cudnn.benchmark),
    "inference_mode": (False, lambda t: not t.fit_loop.epoch_loop.val_loop.inference_mode),
    "profiler": ("advanced", lambda t: isinstance(t.profiler, AdvancedProfiler)),
    "detect_anomaly": (True, lambda t: t._detect_anomaly),
}
OURS = {  # a value, and what it does here as it does in Lightning
    "max_steps": (7, lambda cfg: ours.limits(cfg).max_steps == 7),
    "max_time": ({"hours": 2}, lambda cfg: ours.limits(cfg).time_remaining() == 7200),
    "min_steps": (7, lambda cfg: ours.limits(cfg).min_steps == 7),
    "min_epochs": (7, lambda cfg: ours.limits(cfg).min_epochs == 7),
    "fast_dev_run": (
        3,
        lambda cfg: fast_dev_run.shorten(cfg) or cfg.trainer.limit_train_batches == 3,
    ),
}
REFUSED = {  # a value, and what to use
    "gradient_clip_val": (1e-9, "use optimizer.clip_norm=1e-09"),
    "gradient_clip_algorithm": ("value", "optimizer.clip_norm"),
    "logger": (True, "logger=csv, tensorboard, wandb, mlflow, comet or all"),
    "callbacks": (None, "callbacks.ema, .scoring and .checkpoint"),
    "default_root_dir": ("runs", "hydra.run.dir, or paths.outputs"),
    "enable_checkpointing": (False, "callbacks.checkpoint.every_n_epochs=0"),
    "enable_autolog_hparams": (False, "leave it out"),
    "plugins": (None, "trainer.precision and trainer.strategy"),
    "sync_batchnorm": (True, "leave it out"),
    "use_distributed_sampler": (True, "leave it out"),
    "reload_dataloaders_every_n_epochs": (1, "leave it out"),
    "limit_test_batches": (0.1, "callbacks.scoring.max_conditions"),
    "limit_predict_batches": (0.1, "callbacks.scoring.max_conditions"),
    "barebones": (True, "debug=profile"),
    "model_registry": ("name", "run folder"),
}


@pytest.fixture(scope="module")
def composed():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["trainer=cpu", "net=tiny", "data.sequences=8"])
    check_config(cfg, Train)
    return cfg


@pytest.fixture
def cfg(composed):
    return composed.copy()


def test_every_argument_of_lightnings_trainer_is_decided():
    arguments = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
    assert arguments == set(PASSED_ON) | set(OURS) | set(REFUSED)
    assert set(REFUSED) == set(Trainer.instead)
    assert set(PASSED_ON) | set(OURS) == {field.name for field in fields(Trainer)}


@pytest.mark.parametrize("name", PASSED_ON)
def test_argument_reaches_lightning(cfg, tmp_path, monkeypatch, name):
    monkeypatch.setattr("iclevr_diffusion.training.launchers.check_processes", lambda *_: None)
    value, has_arrived = PASSED_ON[name]
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    assert cfg.trainer[name] != value or name == "accelerator"
    cfg.trainer[name] = value
    check_config(cfg, Train)
    try:
        assert has_arrived(ours.make_trainer(cfg, tmp_path, []))
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@pytest.mark.parametrize("name", OURS)
def test_argument_does_here_what_it_does_in_lightning(cfg, monkeypatch, name):
    value, has_arrived = OURS[name]
    cfg.trainer[name] = value
    check_config(cfg, Train)
    monkeypatch.setattr(fast_dev_run, "overrides", list)
    assert has_arrived(cfg)


@pytest.mark.parametrize("name", REFUSED)
def test_argument_is_refused_with_what_to_use_instead(cfg, name):
    value, advice = REFUSED[name]
    with open_dict(cfg):
        cfg.trainer[name] = value
    with pytest.raises(UserError, match=rf"trainer\.{name} is not used here: ") as refusal:
        check_config(cfg, Train)
    assert advice in str(refusal.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("trainer.max_steps=2", "trainer.max_steps=2"),
        ("+trainer.max_steps=2", "trainer.max_steps=2"),
        ("++trainer.fast_dev_run=3", "trainer.fast_dev_run=3"),
        ("trainer.gradient_clip_val=1", "++trainer.gradient_clip_val=1"),
        ("+trainer.overfit=1,2", "++trainer.overfit=1,2"),
        ("trainer=gpu", "trainer=gpu"),
        ("~trainer.max_steps", "~trainer.max_steps"),
        ("+net.trainer.x=1", "+net.trainer.x=1"),
    ],
)
def test_a_plus_makes_no_difference_for_the_trainers_settings(written, read):
    assert _trainer_word(written, Train) == read
    assert _trainer_word(written, Sample) == written  # that program has no trainer


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_epochs": -2}, "trainer.max_epochs must be at least 1, or -1; got -2"),
        ({"max_epochs": -1}, "trainer.max_epochs=-1 would train without end"),
        ({"max_epochs": None}, "trainer.max_epochs=null would train without end"),
        ({"max_epochs": 2, "min_epochs": 3}, "min_epochs=3 is more than trainer.max_epochs=2"),
        ({"limit_train_batches": 2.5}, "invalid value 2.5 for limit_train_batches"),
        ({"limit_val_batches": -1}, "invalid value -1 for limit_val_batches"),
        ({"overfit_batches": -0.5}, "invalid value -0.5 for overfit_batches"),
        ({"val_check_interval": 0}, "trainer.val_check_interval must be above 0, got 0"),
        ({"num_sanity_val_steps": -2}, "trainer.num_sanity_val_steps must be 0 or more"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(cfg, tmp_path, settings, line):
    cfg.trainer.update(settings)
    with pytest.raises((ValueError, UserError), match=line.replace("(", r"\(")):
        ours.make_trainer(cfg, tmp_path, [])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_steps": -2}, "trainer.max_steps must be at least 1, or -1; got -2"),
        ({"max_time": {"hour": 1}}, "trainer.max_time must be days:hours:minutes:seconds"),
        ({"max_time": "99999999999:00:00:00"}, "trainer.max_time must be days:hours"),
        ({"min_steps": -1}, "trainer.min_steps must be 0 or more, or null; got -1"),
        ({"max_steps": 2, "min_steps": 3}, "trainer.min_steps=3 is more than max_steps=2"),
    ],
)
def test_limits_that_make_no_sense_are_refused(cfg, settings, line):
    cfg.trainer.update(settings)
    with pytest.raises(UserError, match=line):
        ours.limits(cfg)


@pytest.mark.parametrize(
    ("settings", "batches", "line"),
    [
        ({"limit_train_batches": 0.01}, (10, 2), "limit_train_batches=0.01 is less than one of"),
        ({"limit_val_batches": 0.4}, (10, 2), "limit_val_batches=0.4 is less than one of the 2"),
        ({"overfit_batches": 0.01}, (99, 2), "overfit_batches=0.01 is less than one of the 99"),
        ({"val_check_interval": 11}, (10, 2), "val_check_interval=11 is more than the 10 batches"),
        (
            {"val_check_interval": 4, "limit_train_batches": 0.3},
            (10, 2),
            "val_check_interval=4 is more than the 3 batches",
        ),
        ({"overfit_batches": 0.1}, (10, 2), None),
        ({"overfit_batches": 3}, (10, 2), None),
        ({"limit_train_batches": 50}, (10, 2), None),
        ({"limit_val_batches": 0.01}, (10, 0), None),  # there is no validation
        ({"limit_val_batches": 0, "val_check_interval": 11}, (10, 2), None),
    ],
)
def test_limits_leave_a_batch(tmp_path, settings, batches, line):
    program = trainer(tmp_path, **settings)
    if line is None:
        check_limits(program, batches)
    else:
        with pytest.raises(UserError, match=line):
            check_limits(program, batches)


def test_batches_are_as_many_as_the_loaders_have():
    data = datamodule(batch_size=4)
    data.setup("fit")
    assert data.batches(1) == (len(data.train_dataloader()), len(data.val_dataloader()))
    assert data.batches(2) == (data.batches(1)[0] // 2, 1)


def test_evaluators_batches_are_known_before_the_frames_are_rendered(monkeypatch):
    monkeypatch.setattr("iclevr_diffusion.data.evaluator_datamodule.HELD_OUT_SEQUENCES", 3)
    data = EvaluatorData(None, "synthetic", 4, 2, unclear=UnclearSettings(3, 1))
    told = data.batches(1)
    data.setup("fit")
    assert told == (len(data.train_dataloader()), len(data.val_dataloader()))


class Seen(L.Callback):
    """Remembers which frames each epoch was trained and validated on, and the losses."""

    def __init__(self):
        self.train, self.val, self.losses = {}, {}, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.train.setdefault(trainer.current_epoch, []).extend(batch.indices.tolist())
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
        self.val.setdefault(trainer.current_epoch, []).extend(batch.indices.tolist())


@pytest.mark.parametrize(
    ("make", "overfit_batches", "frames"),
    [
        (tiny_module, 1, 4),
        (tiny_module, 0.25, 8),
        (tiny_gan, 3, 12),
        *slow((tiny_module, 3, 12), (tiny_gan, 1, 4), (tiny_gan, 0.25, 8)),
    ],
)
def test_overfitting_sees_the_same_frames_in_every_epoch(tmp_path, overfit_batches, frames, make):
    seen = Seen()
    program = trainer(tmp_path, [seen], overfit_batches=overfit_batches, max_epochs=3)
    check_limits(program, (8, 1))
    program.fit(make(), datamodule(batch_size=4))
    assert len(seen.train[0]) == frames
    assert seen.train[0] == seen.train[1] == seen.train[2]
    assert len(seen.val) == 3


def test_without_overfitting_every_epoch_has_an_order_of_its_own(tmp_path):
    seen = Seen()
    trainer(tmp_path, [seen], max_epochs=2, limit_train_batches=1).fit(tiny_module(), datamodule())
    assert seen.train[0] != seen.train[1]


def test_fixed_noise_repeats_the_first_epoch(tmp_path):
    losses = {}
    for fixed in (False, True):
        seen = Seen()
        module = tiny_module(label_drop=0.5, dropout=0.5, lr=1e-30)
        module.fixed_noise = fixed
        trainer(tmp_path, [seen], overfit_batches=1, max_epochs=3).fit(module, datamodule())
        losses[fixed] = [round(loss, 5) for loss in seen.losses]
    assert len(set(losses[False])) == 3
    assert len(set(losses[True])) == 1
    assert losses[True][0] == losses[False][0]
