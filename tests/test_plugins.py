"""The project of docs/extending.md, used through ``--config-dir`` and ``plugins``.

It has other images and labels, a network, a noise schedule, a callback, a logger, a metric and an
evaluator: one module and one YAML file each.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from iclevr_diffusion.training.loggers import read_metrics

pytestmark = pytest.mark.slow
DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r'```(\w+)(?: title="([^"]+)")?\n(.*?)```', re.DOTALL)


def write_project(folder):
    """Write the module and the configs of the two pages."""
    pages = [(DOCS / name).read_text("utf-8") for name in ("own_data.md", "extending.md")]
    blocks = [block for page in pages for block in BLOCK.findall(page)]
    code = "\n\n".join(text for language, _, text in blocks if language == "python")
    (folder / "shapes_lab.py").write_text(code, "utf-8")
    for _, name, text in blocks:
        if name:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")


CALLS = """
import importlib, json, sys
from hydra.core.global_hydra import GlobalHydra
from iclevr_diffusion.cli import run_dir
for name, *words in json.loads(sys.argv[1]):
    run_dir.new_or_latest.cache_clear()
    run_dir.new_folder.cache_clear()
    GlobalHydra.instance().clear()
    sys.argv[:] = [name, *words]
    code = 0
    try:
        importlib.import_module(f"iclevr_diffusion.{name}").main()
    except SystemExit as end:
        code = end.code
    print(f"exit code of {name}: {code}", flush=True)
"""


def call(folder, *commands):
    """Run commands one after the other in a process of their own: what it printed."""
    words = [sys.executable, "-c", CALLS, json.dumps(commands)]
    environment = os.environ | {"HYDRA_FULL_ERROR": "", "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The user's folder, with a run that was stopped, resumed and evaluated."""
    folder = tmp_path_factory.mktemp("lab")
    write_project(folder)
    mine = ("--config-dir=conf", "experiment=shapes")
    out, err = call(
        folder,
        ["train", *mine, "trainer.max_steps=3"],
        ["train", *mine, "resume=true"],
        [
            "evaluate", "--config-dir=conf", "weights=outputs/shapes", "data=shapes",
            "evaluator=shapes", "lists=[test,all,unseen]", "seeds=1", "reference_frames=8",
            "out=scores", "fidelity=true",
        ],
    )  # fmt: skip
    assert out.count("exit code of train: 0") == 2, err
    assert "exit code of evaluate: 0" in out, err
    return folder


@pytest.fixture
def run_of(lab):
    (folder,) = (path for path in (lab / "outputs" / "shapes").iterdir() if path.is_dir())
    return folder


def test_the_run_is_resumed_with_the_users_network_schedule_data_and_callback(run_of):
    summary = json.loads((run_of / "summary.json").read_text())
    assert (summary["steps"], summary["data"]) == (8, "shapes")
    assert summary["evaluator"] == "the shapes' evaluator"
    assert (run_of / "batches.txt").read_text() == "8"
    assert json.loads((run_of / "weights" / "labels.json").read_text())[0] == "red square"
    config = json.loads((run_of / "weights" / "unet" / "config.json").read_text())
    assert (config["_class_name"], config["num_labels"]) == ("CellNet", 15)


def test_the_users_logger_and_lightnings_own_see_every_step(run_of):
    lines = (run_of / "lines.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines if "train/loss" in line][-1] == "7"
    files = sorted(run_of.rglob("lightning_csv/**/metrics.csv"))
    assert len(files) == 2  # one for each process that trained
    assert all("train/loss" in file.read_text().splitlines()[0] for file in files)


def test_the_users_metric_is_logged_and_evaluated(lab, run_of):
    names = set().union(*read_metrics(run_of / "metrics.csv"))
    assert {"score/test/something_shown", "score/validation/accuracy"} <= names
    evaluation = json.loads((lab / "scores" / "evaluation.json").read_text())
    (setting,) = evaluation["settings"]
    assert "something_shown" in json.dumps(setting["lists"]["test"])
    assert evaluation["second_evaluator"] is None
    assert evaluation["lists"]["all"] == "every single, pair and triple"


def test_weights_of_a_users_classes_need_the_module_to_be_named(lab):
    words = ("weights=outputs/shapes", "n=1", "out=images")
    out, err = call(
        lab,
        ["sample", *words, "labels=red square"],
        ["sample", *words, "labels=red cube", "plugins=[shapes_lab]"],
        ["sample", *words, "labels=Red squares, blue frame", "plugins=[shapes_lab]"],
    )
    unknown, no_label = err.strip().splitlines()[-2:]
    assert "is unknown here" in unknown
    assert "plugins=[…]" in unknown
    assert no_label.startswith("error: unknown label 'red cube'; the closest are red ")
    assert "red square, blue frame: 1 image," in out
    assert (lab / "images" / "grid.png").is_file()


def test_an_exported_card_imports_the_users_module(lab):
    out, err = call(lab, ["export", "weights=outputs/shapes", "out=card", "plugins=[shapes_lab]"])
    assert "exit code of export: 0" in out, err
    assert "import shapes_lab  # its classes\nfrom iclevr" in (lab / "card/README.md").read_text()


def test_a_slip_in_a_users_config_is_named(lab):
    mine = ("train", "--config-dir=conf", "experiment=shapes")
    _, err = call(
        lab,
        [*mine, "+net.widht=4"],
        [*mine, "schedule.power=x"],
        [*mine, "+callbacks.counted.evry=2"],
        [*mine, "net._target_=shapes_lab.CelNet"],
    )
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "net.widht: there is no such setting; did you mean net.width?",
        "schedule.power must be a finite number, got 'x'",
        "callbacks.counted.evry: there is no such setting; did you mean callbacks.counted.every?",
        "net._target_=shapes_lab.CelNet: there is no CelNet in shapes_lab; did you mean CellNet?",
    ]
