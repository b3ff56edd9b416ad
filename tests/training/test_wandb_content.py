"""What a W&B run holds, read back record by record from the files of an offline run."""

import json

import pytest
import torch
from PIL import Image

from helpers import artifact_files, wandb_artifacts, wandb_records_of, wandb_rows
from iclevr_diffusion.training.loggers import (
    ScoredImages,
    alert,
    log_checkpoint,
    log_image,
    log_scored_images,
    log_weights,
    wandb_logger,
)
from iclevr_diffusion.training.loggers.wandb_files import STEP, settings_of_run
from wandb_server import forget

SETTINGS = {
    "project": "iclevr",
    "entity": "lab",
    "group": "schedules",
    "job_type": "train",
    "name": "cosine, first",
    "notes": "with = and, commas",
    "tags": ["small", "first"],
}
SCORED = ScoredImages(
    torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4),
    [("red cube", "blue sphere"), ("gray cube",)],
    [("red cube", "blue sphere"), ("gray sphere", "red cube")],
)


def folder_with_weights(folder):
    (folder / "weights" / "net").mkdir(parents=True)
    (folder / "weights" / "net" / "config.json").write_text("{}")
    (folder / "summary.json").write_text("{}")
    (folder / "best.ckpt").write_bytes(b"a checkpoint")
    return folder


def log_all(folder, **settings):
    """What a training logs besides metrics."""
    folder_with_weights(folder)
    logger = wandb_logger(folder, **(SETTINGS | settings))
    logger.log_hyperparams({"optimizer": {"lr": 1e-3}, "data_hash": "0123", "git_commit": "abc"})
    logger.log_metrics({"train/loss": 0.5}, 6)
    logger.log_metrics({"score/mine/unclear": 0.25, "score/mine/accuracy": 0.5}, 7)
    log_image([logger], "sample/grid", Image.new("RGB", (8, 8)), 7)
    log_scored_images([logger], "sample/table", SCORED, 7)
    log_checkpoint([logger], folder / "best.ckpt", 2, 8)
    alert([logger], "collapse", "all images of the list test are the same")
    described = [folder / "weights", folder / "summary.json"]
    log_weights([logger], described, 2, {"score/test/accuracy": 0.75})
    logger.finish(0)
    forget()  # W&B writes a file out after its run is closed; this waits for it
    return folder


@pytest.fixture(scope="module")
def logged(module_home):
    return log_all(module_home / "runs" / "one", log_model="all")


def test_settings_are_those_of_the_run(logged):
    (run,) = wandb_records_of(logged, "run")
    assert (run.project, run.entity, run.run_group) == ("iclevr", "lab", "schedules")
    assert (run.job_type, run.display_name) == ("train", "cosine, first")
    assert run.notes == "with = and, commas"
    assert sorted(run.tags) == ["first", "small"]
    assert settings_of_run(logged) == SETTINGS | {"mode": "offline"}


def test_config_holds_settings_commit_and_data_hash(logged):
    config = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in wandb_records_of(logged, "config")
        for item in record.update
    }
    assert config["optimizer"] == {"lr": 1e-3}
    assert (config["data_hash"], config["git_commit"]) == ("0123", "abc")


def test_the_best_of_each_score_is_what_a_run_shows(logged):
    metrics = wandb_records_of(logged, "metric")
    best = {metric.name or metric.glob_name: metric.summary for metric in metrics}
    assert best["val/loss"].min
    assert best["score/mine/unclear"].min
    assert best["score/mine/accuracy"].max


def test_table_shows_each_image_what_was_asked_for_and_what_is_seen(logged):
    (artifact,) = wandb_artifacts(logged, "run_table")
    files = artifact_files(artifact)
    table = json.loads(files["sample/table.table.json"].read_text())
    assert table["columns"] == ["requested", "image", "shown", "exact match"]
    rows = [(requested, shown, exact) for requested, _, shown, exact in table["data"]]
    assert rows == [
        ("red cube, blue sphere", "red cube, blue sphere", True),
        ("gray cube", "gray sphere, red cube", False),
    ]
    with Image.open(files[table["data"][0][1]["path"]]) as image:
        assert image.size == (4, 4)
        assert image.getpixel((0, 0))[0] == 0
    steps = {name: row[STEP] for row in wandb_rows(logged) for name in row}
    assert (steps["sample/table"], steps["sample/grid"]) == (7, 7)


def test_weights_and_checkpoints_are_artifacts_with_aliases(logged):
    (model,) = wandb_artifacts(logged, "model")
    (checkpoint,) = wandb_artifacts(logged, "checkpoint")
    (run,) = wandb_records_of(logged, "run")
    assert (model.name, checkpoint.name) == (f"model-{run.run_id}", f"checkpoint-{run.run_id}")
    for artifact in (model, checkpoint):
        assert set(artifact.aliases) == {"latest", "best", "epoch-2"}
    assert set(artifact_files(model)) == {"weights/net/config.json", "summary.json"}
    assert json.loads(model.metadata) == {"epoch": 2, "score/test/accuracy": 0.75}
    assert json.loads(checkpoint.metadata) == {"epoch": 2, "step": 8}


def test_files_of_artifacts_stay_in_the_run_folder(logged):
    for artifact in wandb_records_of(logged, "artifact"):
        for path in artifact_files(artifact).values():
            assert path.is_relative_to(logged)
            assert path.is_file()


def test_alert_has_title_text_and_level(logged):
    (record,) = wandb_records_of(logged, "alert")
    assert (record.title, record.level) == ("collapse", "ERROR")
    assert record.text == "all images of the list test are the same"


@pytest.mark.parametrize(
    ("log_model", "kinds"), [(False, {"run_table"}), ("best", {"run_table", "model"})]
)
def test_artifacts_are_logged_on_request_only(module_home, capfd, log_model, kinds):
    folder = log_all(module_home / "runs" / str(log_model), log_model=log_model)
    assert capfd.readouterr().err == ""
    assert {artifact.type for artifact in wandb_records_of(folder, "artifact")} == kinds


def test_tables_can_be_left_out(module_home):
    folder = log_all(module_home / "runs" / "without", tables=False)
    assert not wandb_records_of(folder, "artifact")
    assert any("sample/grid" in row for row in wandb_rows(folder))


def test_mode_offline_and_disabled_are_as_asked_for(module_home, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    offline = log_all(module_home / "runs" / "offline", mode="offline")
    assert len(wandb_records_of(offline, "run")) == 1
    disabled = log_all(module_home / "runs" / "disabled", mode="disabled", log_model="all")
    assert not list(disabled.rglob("*.wandb"))


def test_what_fails_in_wandb_ends_no_training(module_home, capfd):
    folder = folder_with_weights(module_home / "runs" / "failing")
    logger = wandb_logger(folder, **SETTINGS, log_model="best")
    log_weights([logger], [folder / "gone"], 2, {})
    alert([logger], "a", "b")
    logger.finish(0)
    forget()
    _, line = capfd.readouterr().out.splitlines()
    assert line.startswith("W&B: artifacts are left out from now on: ")
    assert len(wandb_records_of(folder, "alert")) == 1
