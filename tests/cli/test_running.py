"""A run: its folder and its loggers."""

from types import SimpleNamespace

import lightning as L
import pytest
from omegaconf import OmegaConf

from iclevr_diffusion.cli import running
from iclevr_diffusion.cli.running import check_scored
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.resume import ResumePoint
from iclevr_diffusion.utils.errors import TrainingError, UserError


@pytest.mark.parametrize("error", [TrainingError, UserError])
def test_training_that_fails_sends_an_alert_before_the_loggers_close(tmp_path, monkeypatch, error):
    happened = []
    monkeypatch.setattr(running, "in_a_sweep", lambda: True)
    monkeypatch.setattr(running, "alert", lambda loggers, *words: happened.append(words))
    monkeypatch.setattr(running, "close_loggers", lambda loggers, code: happened.append(code))
    trainer = L.Trainer(accelerator="cpu", logger=False)
    cfg = OmegaConf.create({"logger": {}})
    with pytest.raises(error), running.running(cfg, tmp_path, trainer):
        raise error("the loss is NaN at step 3")
    failed = ("training failed", "the loss is NaN at step 3")
    assert happened == ([failed, 1] if error is TrainingError else [1])


def test_a_run_that_was_never_scored_is_not_taken_for_finished(tmp_path):
    trainer = SimpleNamespace(callbacks=[object.__new__(Scoring)])
    finished = ResumePoint(tmp_path / "last.ckpt", {"progress": {"epoch": 1, "steps": 4}})
    with pytest.raises(UserError, match="has 2 epochs and 4 steps, which were never scored"):
        check_scored(trainer, finished)
    (tmp_path / "best.ckpt").touch()
    check_scored(trainer, finished)


def test_a_run_without_scoring_may_be_finished(tmp_path):
    """Such as that of an evaluator, which keeps no best checkpoint."""
    finished = ResumePoint(tmp_path / "last.ckpt", {"progress": {"epoch": 1, "steps": 4}})
    check_scored(SimpleNamespace(callbacks=[]), finished)
