"""A run: its folder and its loggers."""

import lightning as L
import pytest
from omegaconf import OmegaConf

from iclevr_diffusion.cli import running
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
