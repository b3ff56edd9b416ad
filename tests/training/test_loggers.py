from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from PIL import Image

from iclevr_diffusion import train
from iclevr_diffusion.training.loggers import (
    MetricsCSV,
    log_image,
    metrics_csv,
    read_metrics,
    resume_logging,
    tensorboard_logger,
)


def test_metrics_come_back_as_they_were_logged(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    logger.log_metrics({"train/loss": 0.1 + 0.2}, 5)
    logger.log_metrics({"val/loss": 2.0}, 5)
    logger.log_metrics({"train/loss": 1e-30}, 10)
    logger.finalize("success")
    assert read_metrics(path) == [
        {"step": 5.0, "train/loss": 0.1 + 0.2, "val/loss": 2.0},
        {"step": 10.0, "train/loss": 1e-30},
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_resumed_log_continues_after_the_checkpoint(tmp_path):
    first = MetricsCSV(tmp_path / "metrics.csv")
    for step in (5, 10, 15):
        first.log_metrics({"train/loss": float(step)}, step)
    first.flush()
    second = MetricsCSV(tmp_path / "metrics.csv")
    second.restore(steps=11)
    second.log_metrics({"train/loss": 99.0}, 15)
    second.flush()
    assert [row["train/loss"] for row in read_metrics(tmp_path / "metrics.csv")] == [5, 10, 99]


def test_metrics_are_on_disk_within_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics_csv, "time", SimpleNamespace(monotonic=lambda: now[0]))
    logger = MetricsCSV(tmp_path / "metrics.csv")
    on_disk = []
    for step in range(4):
        now[0] += 6
        logger.log_metrics({"train/loss": float(step)}, step)
        logger.save()
        on_disk.append(len(read_metrics(logger.path)))
    assert on_disk == [0, 2, 2, 4]


def test_metrics_are_on_disk_with_each_checkpoint(tmp_path):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 1.0}, 5)
    assert read_metrics(logger.path) == []
    logger.flush()
    assert read_metrics(logger.path) == [{"step": 5.0, "train/loss": 1.0}]


def test_no_file_gives_no_rows(tmp_path):
    assert read_metrics(tmp_path / "missing.csv") == []


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("logger=csv", []),
        ("logger=[]", []),
        ("~logger", []),
        ("logger=[wandb,csv]", ["wandb"]),
        ("logger=[csv,tensorboard]", ["tensorboard"]),
    ],
)
def test_csv_adds_no_logger_and_switches_none_off(run, word, names):
    code, out, err = run(train, word, "--cfg", "job")
    assert (code, err) == (0, "")
    assert list(OmegaConf.create(out).logger) == names


def test_all_means_wandb_and_tensorboard(run):
    code, out, err = run(train, "logger=all", "--cfg", "job")
    assert (code, err) == (0, "")
    for name in ("wandb_logger", "tensorboard_logger"):
        assert f"_target_: iclevr_diffusion.training.loggers.{name}" in out


def test_tensorboard_holds_metrics_and_images(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = tensorboard_logger(tmp_path)
    logger.log_metrics({"train/loss": 0.5}, 3)
    log_image([logger], "sample/grid", Image.new("RGB", (8, 8)), 3)
    logger.finalize("success")
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(3, 0.5)]
    assert read.Tags()["images"] == ["sample/grid"]


def test_tensorboard_of_a_resumed_run_shows_each_step_once(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, until in ((0, 8), (5, 10)):  # killed after eight steps, resumed from a checkpoint
        logger = tensorboard_logger(tmp_path)
        resume_logging([logger], steps)
        logger.log_hyperparams({"seed": 0})
        for step in range(steps, until):
            logger.log_metrics({"train/loss": float(steps)}, step)
            log_image([logger], "sample/grid", Image.new("RGB", (8, 8)), step)
        logger.finalize("success")
    read = events.EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "scalars": 0})
    read.Reload()
    scalars = [(event.step, event.value) for event in read.Scalars("train/loss")]
    assert scalars == [(step, 0.0 if step < 5 else 5.0) for step in range(10)]
    assert [event.step for event in read.Images("sample/grid")] == list(range(10))
    assert read.Tags()["scalars"] == ["train/loss"]  # and no hp_metric
