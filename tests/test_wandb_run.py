"""A W&B run from its training on: ``evaluate`` and ``report`` log into it, too."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import SMALL_RUN as SMALL
from helpers import artifact_files, folders, wandb_artifacts, wandb_records_of, wandb_rows
from iclevr_diffusion import evaluate, report, train
from iclevr_diffusion.training.loggers import wandb_logger
from iclevr_diffusion.training.loggers.wandb_files import STEP
from iclevr_diffusion.utils.status import write_status
from wandb_server import forget

RUN = Path("outputs/tiny/one")
QUICK = ("reference_frames=0", "lists=[few.json]", "seeds=1")


@pytest.fixture
def trained(home, run, weights_folder):
    """A run folder as a training with ``logger=wandb`` leaves it, offline, after seven steps."""
    shutil.copytree(weights_folder, RUN / "weights")
    (RUN / "config.yaml").write_text("name: tiny\nseed: 0\n")
    write_status(RUN, "finished", "", [])
    logger = wandb_logger(RUN, "iclevr", tags=["mine"])
    logger.log_metrics({"train/loss": 0.5}, 6)
    logger.finish(0)
    forget()
    Path("few.json").write_text('[["red cube"], ["cyan sphere", "gray cube"]]')
    return RUN


@pytest.mark.slow
def test_training_logs_settings_tables_weights_and_its_failure(home, run):
    subprocess.run(["git", "init", "-q"], check=True)
    author = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "mine"], check=True)
    words = (*SMALL, "logger=wandb", "trainer.log_every_n_steps=1")
    more = ("logger.wandb.log_model=all", "logger.wandb.notes=one, two", "trainer.max_steps=2")
    code, _, err = run(train, *words, *more)
    assert code == 0, err
    forget()
    (folder,) = folders("run")
    config = {
        item.key: json.loads(item.value_json)
        for record in wandb_records_of(folder, "config")
        for item in record.update
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert config["git_commit"] == commit.strip()
    assert len(config["data_hash"]) == 16
    assert config["versions"].keys() >= {"torch", "lightning"}
    assert config["net"]["_target_"]
    assert config["optimizer"]["lr"] > 0
    assert wandb_records_of(folder, "run")[0].notes == "one, two"
    logged = {name for row in wandb_rows(folder) for name in row}
    assert {"sample/table", "sample/table_new_test", "sample/table_validation"} <= logged
    (model,) = wandb_artifacts(folder, "model")
    assert {"summary.json", "weights/model_index.json"} <= artifact_files(model).keys()
    (checkpoint,) = wandb_artifacts(folder, "checkpoint")
    assert artifact_files(checkpoint).keys() == {"best.ckpt"}

    code, _, err = run(train, *words, "name=nan", "optimizer.lr=1e30", "trainer.max_steps=9")
    assert code == 1
    forget()
    (folder,) = folders("nan")
    (record,) = wandb_records_of(folder, "alert")
    assert record.title == "training failed"
    assert record.text in err
    assert [record.exit_code for record in wandb_records_of(folder, "exit")] == [1]


@pytest.mark.slow
def test_evaluation_is_logged_to_the_run_of_the_weights(trained, run):
    words = (f"weights={trained}", "wandb_run=true", "out=out", *QUICK)
    code, out, err = run(evaluate, *words)
    assert (code, err) == (0, "")
    assert "W&B is offline. To upload it later: wandb sync " in out
    forget()

    first, second = wandb_records_of(trained, "run")
    assert first.run_id == second.run_id
    assert (second.project, list(second.tags)) == ("iclevr", ["mine"])
    assert [record.exit_code for record in wandb_records_of(trained, "exit")] == [0, 0]

    rows = wandb_rows(trained)
    steps = {name: row[STEP] for row in rows for name in row}
    assert {"evaluate/results", "evaluate/grid_few", "evaluate/strip"} <= steps.keys()
    assert steps["evaluate/results"] == steps["evaluate/grid_few"] == 6
    figures = json.loads(Path("out/evaluation.json").read_text())
    scores = figures["settings"][0]["lists"]["few"]["metrics"]
    summary = {
        item.key: json.loads(item.value_json)
        for record in wandb_records_of(trained, "summary")
        for item in record.update
        if item.key.startswith("evaluate/few/")
    }
    assert summary["evaluate/few/accuracy"] == scores["accuracy"]["mean"]
    assert len(summary) == len(scores)

    (artifact,) = wandb_artifacts(trained, "evaluation")
    files = artifact_files(artifact)
    assert json.loads(files["evaluation.json"].read_text()) == figures
    tables = {
        name: json.loads(path.read_text())
        for table in wandb_artifacts(trained, "run_table")
        for name, path in artifact_files(table).items()
        if name.endswith(".table.json")
    }
    images = tables["evaluate/dpm_solver_2_w1/table_few.table.json"]
    assert [row[0] for row in images["data"]] == ["red cube", "cyan sphere, gray cube"]
    results = tables["evaluate/results.table.json"]
    (row,) = (dict(zip(results["columns"], row, strict=True)) for row in results["data"])
    assert (row["list"], row["accuracy"]) == ("few", scores["accuracy"]["mean"])


@pytest.mark.slow
def test_report_is_logged_to_the_named_run(trained, run):
    code, _, err = run(report, str(trained), "out=page", "wandb_run=true")
    assert (code, err) == (0, "")
    code, _, err = run(report, "outputs", "out=other", f"wandb_run={trained}")
    assert (code, err) == (0, "")
    forget()
    pages = sorted(trained.glob("wandb/offline-run-*/files/media/html/*.html"))
    assert [page.read_text() for page in pages] == [Path("page/report.html").read_text()] * 2
    assert [row[STEP] for row in wandb_rows(trained) if "report" in row] == [6, 6]


def test_a_run_without_wandb_is_refused_before_anything_is_written(trained, run):
    shutil.rmtree(trained / "wandb")
    for program, words in ((evaluate, (f"weights={trained}", *QUICK)), (report, (str(trained),))):
        code, _, err = run(program, *words, "out=out", "wandb_run=true")
        assert code == 2
        assert "has no W&B run; one begins with train … logger=wandb" in err
    assert not Path("out").exists()
