"""MLflow and Comet: what their files hold, also of a run that was continued."""

import importlib
import json
import sys
import zipfile

import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from helpers import SMALL_RUN as SMALL
from helpers import folders
from iclevr_diffusion import train
from iclevr_diffusion.training.loggers import (
    MetricsCSV,
    alert,
    close_loggers,
    log_image,
    read_metrics,
    resume_logging,
)
from iclevr_diffusion.training.loggers.comet_run import comet_logger
from iclevr_diffusion.training.loggers.mlflow_run import mlflow_logger

GRID = Image.new("RGB", (8, 8))


def test_image_is_logged_to_every_logger_that_can_show_it(tmp_path):
    class Album(CSVLogger):
        images = ()

        def log_image(self, key, images, step=None):
            self.images = (*self.images, (key, len(images), step))

    album = Album(tmp_path)
    log_image([CSVLogger(tmp_path), MetricsCSV(tmp_path / "metrics.csv"), album], "a", GRID, 7)
    assert album.images == (("a", 1, 7),)


@pytest.mark.parametrize("name", ["mlflow", "comet", "tensorboard"])
def test_missing_package_is_named_before_the_run_begins(run, monkeypatch, tmp_path, name):
    for package in {"comet": ["comet_ml"], "tensorboard": [name, "tensorboardX"]}.get(name, [name]):
        monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(train, *SMALL, f"logger={name}")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: logger={name} needs ")
    assert "pip install " in line
    assert not list(tmp_path.glob("outputs/*/*"))


# MLflow.


@pytest.fixture
def mlflow(monkeypatch):
    """The package; no test may use its network."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    for variable in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(variable, "true")  # restored when the test ends
    return importlib.import_module("mlflow")


def run_folder(tmp_path):
    folder = tmp_path / "schedules" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def mlflow_run(folder):
    return mlflow_logger(folder, str(folder.parents[1] / "my runs"), "schedules", tags={"a": "b"})


def log_steps(logger, steps, image_at):
    for step in steps:
        logger.log_metrics({"train/loss": float(step), "epoch": 0.0}, step)
        if step == image_at:
            log_image([logger], "sample/grid", GRID, step)


def test_mlflow_run_holds_settings_metrics_and_images(mlflow, tmp_path):
    folder = run_folder(tmp_path)
    logger = mlflow_run(folder)
    logger.log_hyperparams({"optimizer": {"lr": 0.1}, "name": "x"})
    log_steps(logger, range(3), image_at=2)
    alert([logger], "nothing", "only W&B has alerts")
    logger.finalize("success")
    log_image([logger], "sample/strip", GRID, 2)
    close_loggers([logger], 1)
    client = mlflow.MlflowClient((tmp_path / "my runs").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "schedules"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == (folder / "mlflow_run_id").read_text().strip()
    assert (found.info.run_name, found.info.status) == ("schedules/one", "FAILED")
    assert found.data.params == {"optimizer.lr": "0.1", "name": "x"}
    assert found.data.tags["a"] == "b"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 0), (1, 1), (2, 2)]
    images = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 2


def test_resumed_mlflow_run_has_each_step_and_image_once(mlflow, tmp_path):
    folder = run_folder(tmp_path)
    logger = mlflow_run(folder)
    logger.log_hyperparams({"trainer": {"max_epochs": 1}})
    log_steps(logger, range(8), image_at=6)  # it is killed, and goes on from step 5
    csv = MetricsCSV(folder / "metrics.csv")
    log_steps(csv, range(5), image_at=None)
    csv.flush()
    logger = mlflow_run(folder)
    resume_logging([MetricsCSV(csv.path), logger], 5)
    logger.log_hyperparams({"trainer": {"max_epochs": 2}, "seed": 1})
    log_steps(logger, range(5, 10), image_at=6)
    close_loggers([logger], 0)
    client = mlflow.MlflowClient((tmp_path / "my runs").as_uri())
    found = client.get_run((folder / "mlflow_run_id").read_text().strip())
    assert found.info.status == "FINISHED"
    assert found.data.params == {"trainer.max_epochs": "1", "seed": "1"}  # it keeps what it has
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(10))
    images = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 1


def test_mlflow_that_fails_ends_no_training(mlflow, tmp_path, capsys, monkeypatch):
    logger = mlflow_run(run_folder(tmp_path))

    def fail(*_, **__):
        raise OSError("no space left\non device")

    monkeypatch.setattr(logger.experiment, "log_batch", fail)
    log_steps(logger, range(3), image_at=1)
    close_loggers([logger], 0)
    line = "MLflow: no space left on device; metrics.csv has every step\n"
    assert capsys.readouterr().out == line


@pytest.mark.slow
def test_train_logs_to_mlflow_and_resumes_the_run(mlflow, run, tmp_path):
    words = ("logger=mlflow", "trainer.log_every_n_steps=1")
    code, _, err = run(train, *SMALL, *words, "trainer.max_steps=2")
    assert code == 0, err
    (folder,) = folders("run")
    code, _, err = run(train, *SMALL, *words, "trainer.max_steps=4", f"resume={folder}")
    assert code == 0, err
    client = mlflow.MlflowClient((tmp_path / "outputs" / "mlruns").as_uri())
    run_id = (folder / "mlflow_run_id").read_text().strip()
    steps = [point.step for point in client.get_metric_history(run_id, "train/loss")]
    assert steps == [int(row["step"]) for row in read_metrics(folder / "metrics.csv")][:4]
    assert client.get_run(run_id).data.params["optimizer.lr"]


# Comet.


@pytest.mark.slow
def test_comet_archives_hold_each_step_and_image_once(tmp_path, monkeypatch, capsys):
    for variable in ("COMET_ERROR_TRACKING_ENABLE", "COMET_LOGGING_CONSOLE"):
        monkeypatch.setenv(variable, "false" if "ENABLE" in variable else "error")
    pytest.importorskip("comet_ml", reason="comet-ml is not installed")
    contacted = []
    sys.addaudithook(lambda event, _: event == "socket.getaddrinfo" and contacted.append(event))
    folder = run_folder(tmp_path)
    for steps in (range(8), range(5, 10)):
        logger = comet_logger(folder, "iclevr", tags=["a"])
        logger.log_hyperparams({"optimizer": {"lr": 0.1}})
        log_steps(logger, steps, image_at=6)
        logger.finalize("success")
        close_loggers([logger], 0)
    archives = sorted(folder.glob("comet/*.zip"), key=lambda path: path.stat().st_mtime_ns)
    assert len(archives) == 2
    messages = []
    for archive in archives:
        with zipfile.ZipFile(archive) as file:
            lines = file.read("messages.json").splitlines()
            messages += [json.loads(line)["payload"] for line in lines]
            assert json.loads(file.read("experiment.json"))["project_name"] == "iclevr"
    metrics = [message["metric"] for message in messages if "metric" in message]
    steps = [metric["step"] for metric in metrics if metric["metricName"] == "train/loss"]
    assert steps == list(range(10))
    about = [message.get("additional_params", {}) for message in messages]
    assert [image["figName"] for image in about if "figName" in image] == ["sample/grid"]
    assert contacted == []
    line, again = capsys.readouterr().out.splitlines()
    upload = f"comet upload {folder}/comet/*.zip"
    assert line == again == f"Comet is offline. To upload it later: {upload}"
