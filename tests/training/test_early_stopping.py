"""Early stopping by the scores of the validation list."""

from pathlib import Path

import pytest
from test_scoring import Scripted, scoring

from helpers import SMALL_RUN, datamodule, folders, tiny_module, trainer
from iclevr_diffusion import train
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.training.callbacks.early_stopping import EarlyStopping
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.power_ema import find_snapshots

LISTS = {"validation": [ICLEVR_LABELS.check("red cube")]}


def epochs_of(folder, script, every_n_epochs=1, limits=(), **settings):
    """Train until early stopping ends the run, with an evaluator that sees what a script says."""
    scored = scoring(folder, every_n_epochs, Scripted(*script), LISTS)
    callbacks = [*limits, scored, EarlyStopping(LISTS, **settings)]
    run = trainer(folder, callbacks, max_epochs=9, limit_train_batches=1, limit_val_batches=0)
    run.fit(tiny_module(), datamodule())
    return run.current_epoch


def test_training_ends_once_the_scores_stop_improving(tmp_path):
    script = ("blue cube", "red cube", "red cube", "blue cube")
    assert epochs_of(tmp_path, script, patience=2) == 4  # the second epoch was the best


def test_scorings_count_not_epochs(tmp_path):
    assert epochs_of(tmp_path, ["red cube"], every_n_epochs=2, patience=1) == 4


def test_a_metric_that_should_fall_is_minimized(tmp_path):
    script = ("blue cube", "red cube", "blue cube")
    settings = {"monitor": "score/validation/missing", "patience": 1}
    assert epochs_of(tmp_path, script, **settings) == 3


@pytest.mark.slow
def test_min_epochs_are_trained(tmp_path):
    assert epochs_of(tmp_path, ["red cube"], limits=[Limits(min_epochs=5)], patience=1) == 6


@pytest.mark.parametrize("monitor", ["score/test/accuracy", "score/validation/f1", "val/loss"])
def test_other_scores_are_refused(monitor):
    with pytest.raises(ValueError, match="monitor must be one of score/validation, score/val"):
        EarlyStopping(LISTS, monitor)


@pytest.mark.slow
def test_stopped_run_is_finished_until_the_patience_is_raised(run):
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.min_delta=3")
    again = ("callbacks.scoring.every_n_epochs=1", "optimizer.lr=1e-30", "trainer.max_epochs=5")
    command = (*SMALL_RUN, *again, *stop)
    code, out, err = run(train, *command, "callbacks.early_stopping.patience=1")
    assert code == 0, err
    assert "early stopping: score/validation has not improved on" in out
    (folder,) = folders("run")
    assert "sample_test_0001.png" in {path.name for path in Path(folder, "images").iterdir()}
    code, out, _ = run(train, *command, "callbacks.early_stopping.patience=1", "resume=true")
    assert (code, "callbacks.early_stopping.patience) to continue" in out) == (0, True)
    code, out, err = run(train, *command, "callbacks.early_stopping.patience=2", "resume=true")
    assert code == 0, err
    assert Path(folder, "images", "sample_test_0002.png").is_file()


def test_a_stopped_run_has_a_last_snapshot_of_its_averages(run):
    stop = ["callbacks=[posthoc_ema,early_stopping]", "callbacks.early_stopping.min_delta=3"]
    stop += ["callbacks.early_stopping.patience=1", "callbacks.scoring.every_n_epochs=1"]
    code, _, err = run(train, *SMALL_RUN, *stop, "trainer.max_epochs=5")
    assert code == 0, err
    (folder,) = folders("run")
    assert [snapshot.updates for snapshot in find_snapshots(Path(folder, "ema_snapshots"))] == [
        8,
        8,
    ]
