"""W&B: logins, names, servers that fail, and runs that are continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image

from helpers import SMALL_RUN as SMALL
from helpers import slow
from iclevr_diffusion.training.loggers import (
    MetricsCSV,
    ScoredImages,
    alert,
    check_wandb,
    close_loggers,
    log_image,
    log_scored_images,
    read_metrics,
    resume_logging,
    wandb_logger,
)
from iclevr_diffusion.training.loggers.wandb_files import STEP, history, run_id
from iclevr_diffusion.training.loggers.wandb_settings import has_login
from iclevr_diffusion.utils.errors import UserError
from wandb_server import KEY, forget, served, wait_until


def run_folder(tmp_path, *names):
    folder = tmp_path.joinpath(*(names or ("cosine_eps", "2026-01-02")))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def logged_rows(folder):
    """The rows of all processes of an offline run, as ``wandb sync`` would send them."""
    forget()  # W&B writes a file out after its run is closed; this waits for it
    files = sorted(folder.glob("wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [(number, row) for file in files for number, row in history(file)]


# Logins.

CLOUD = f"machine api.wandb.ai login user password {KEY}\n"


def login_found():
    forget()
    return has_login(wandb.setup().settings)


def test_no_login(home):
    assert not login_found()
    (home / ".netrc").write_text(f"machine another.example login user password {KEY}\n")
    assert not login_found()


@pytest.mark.parametrize("mode", [0o600, 0o644])
@pytest.mark.parametrize("name", [".netrc", "_netrc"])
def test_login_in_a_netrc_that_others_may_read_counts(home, name, mode):
    (home / name).write_text(CLOUD)
    (home / name).chmod(mode)
    assert login_found()


def test_netrc_that_is_no_text_is_named_and_counts_as_no_login(home, capsys):
    (home / ".netrc").write_bytes(b"\xff\xfe")
    assert not login_found()
    assert (
        "W&B: the logins in the netrc file cannot be read: 'utf-8' codec" in capsys.readouterr().out
    )


def test_netrc_variable_names_the_file(home, monkeypatch, tmp_path):
    (tmp_path / "secrets").write_text(CLOUD)
    monkeypatch.setenv("NETRC", str(tmp_path / "secrets"))
    assert login_found()


def test_login_counts_for_its_own_server_only(home, monkeypatch):
    (home / ".netrc").write_text(f"machine metrics.lab.example:8080 login u password {KEY}\n")
    assert not login_found()
    monkeypatch.setenv("WANDB_BASE_URL", "https://metrics.lab.example:8080")
    assert login_found()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_login_in_the_environment_counts(home, monkeypatch, name):
    monkeypatch.setenv(name, KEY)
    assert login_found()


def test_server_in_wandbs_settings_file_counts(home, monkeypatch):
    (home / ".netrc").write_text(f"machine metrics.lab.example login user password {KEY}\n")
    settings = home / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://metrics.lab.example\n")
    assert login_found()


def test_without_a_login_a_run_is_offline_and_says_so(home, tmp_path, capsys):
    folder = run_folder(tmp_path)
    logger = wandb_logger(folder, "iclevr")
    close_loggers([logger], 0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B is offline. To upload it later: wandb sync ")
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1


def test_disabled_writes_nothing(home, monkeypatch, tmp_path):
    for name, value in (("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")):
        with monkeypatch.context() as only:
            only.setenv(name, value)
            forget()
            logger = wandb_logger(run_folder(tmp_path), "iclevr")
            logger.log_metrics({"train/loss": 1.0}, 1)
            close_loggers([logger], 0)
    assert not list(run_folder(tmp_path).rglob("*.wandb"))


def test_offline_with_a_login_contacts_no_server(home, monkeypatch, tmp_path):
    with served() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", "offline")
        close_loggers([wandb_logger(run_folder(tmp_path), "iclevr")], 0)
        forget()
    assert server.requests == []


# Names.


@pytest.mark.parametrize(
    "names",
    [
        ("seed=0,name='x'", "a:b"),
        ("a;b#c?", " "),
        ("資料", "run%20 é"),
        ("x" * 200, "y" * 200),
    ],
)
def test_any_folder_name_works(home, tmp_path, names):
    folder = run_folder(tmp_path, *names)
    ids = set()
    for steps in (range(2), range(1, 4)):  # the second goes on from a checkpoint at step 1
        logger = wandb_logger(folder, "iclevr")
        for step in steps:
            logger.log_metrics({"train/loss": float(step)}, step)
        close_loggers([logger], 0)
        ids.add(logger.version)
    (only,) = ids
    assert len(only) <= 64
    assert only.isascii()
    assert [row["train/loss"] for _, row in logged_rows(folder)] == [0, 1, 2, 3]


def test_folder_that_is_not_utf8_is_refused_in_one_line(home, tmp_path):
    with pytest.raises(UserError, match=r"^logger=wandb needs a run folder whose name is UTF-8"):
        wandb_logger(tmp_path / os.fsdecode(b"latin-\xe9"), "iclevr")


def test_folders_that_read_alike_have_runs_of_their_own(home, tmp_path):
    folders = [("a-b", "c"), ("a", "b-c"), ("a_b", "c"), ("a:b", "c"), ("a;b", "c")]
    ids = [run_id(run_folder(tmp_path, *names)) for names in folders]
    elsewhere = run_id(run_folder(tmp_path / "elsewhere", "a", "b-c"))
    assert len({*ids, elsewhere}) == len(folders) + 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"project": "p" * 129}, "logger.wandb.project must have 1 to 128 characters, got 'ppp"),
        ({"project": " "}, "logger.wandb.project must have 1 to 128 characters, got ' '"),
        ({"group": ""}, "logger.wandb.group must have 1 to 128 characters, got ''"),
        ({"entity": "my team"}, "logger.wandb.entity must be the name of a user or a team, got"),
        ({"tags": [""]}, "logger.wandb: run_tags: Tag at index 0 is empty"),
    ],
)
def test_what_wandb_does_not_take_is_refused_in_one_line(settings, line):
    defaults = {"project": "iclevr", "group": None, "tags": [], "fallback": "offline"}
    with pytest.raises(UserError) as error:
        check_wandb(defaults | settings)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


# Servers that fail.


@pytest.fixture
def server(home, monkeypatch):
    with served() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server
        server.failure = "404"
        forget()


def train(folder, start_timeout=3, **settings):
    """What a run logs; the seconds that its start and its end took."""
    begin = time.monotonic()
    settings = {"finish_timeout": 3} | settings
    logger = wandb_logger(folder, "iclevr", start_timeout=start_timeout, **settings)
    started = time.monotonic() - begin
    for step in range(3):
        logger.log_metrics({"train/loss": float(step)}, step)
    return logger, started


def test_server_that_answers_gets_every_step_once(server, tmp_path, capfd):
    logger, _ = train(run_folder(tmp_path), start_timeout=60, finish_timeout=60)
    close_loggers([logger], 0)
    assert [row["train/loss"] for row in server.uploaded] == [0, 1, 2]
    out, err = capfd.readouterr()
    assert out.splitlines() == [f"W&B: {server.url}/me/iclevr/runs/{logger.version}"]
    assert err == ""


def test_server_without_artifacts_still_gets_every_step(server, tmp_path, capfd):
    logger, _ = train(run_folder(tmp_path), start_timeout=60, finish_timeout=60)
    images = torch.zeros(2, 3, 4, 4)
    scored = ScoredImages(images, [("red cube",)] * 2, [("red cube",), ()])
    log_scored_images([logger], "sample/table", scored, 2)
    alert([logger], "collapse", "all images are the same")
    logger.log_metrics({"train/loss": 3.0}, 3)
    begin = time.monotonic()
    close_loggers([logger], 0)
    assert time.monotonic() - begin < 30
    assert [row["train/loss"] for row in server.uploaded if "train/loss" in row] == [0, 1, 2, 3]
    out, err = capfd.readouterr()
    assert out.splitlines()[1].startswith("W&B: tables are left out from now on: ")
    assert err == ""


@pytest.mark.parametrize("failure", ["401", "text", *slow("403", "404", "hangs", "500", "refused")])
def test_server_that_fails_at_the_start_leaves_an_offline_run(
    server, monkeypatch, tmp_path, capfd, failure
):
    if failure == "refused":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    server.failure = failure
    folder = run_folder(tmp_path)
    logger, started = train(folder)
    close_loggers([logger], 0)
    assert started < 30
    out, err = capfd.readouterr()
    assert err == ""
    (line,) = out.splitlines()
    assert line.startswith("W&B: ")
    assert "; the training continues offline. To upload it later: wandb sync " in line
    assert line.endswith("/wandb/offline-run-*")
    assert [row["train/loss"] for _, row in logged_rows(folder)] == [0, 1, 2]


@pytest.mark.parametrize("key", ["short", "not a key", "x" * 39 + "!"])
def test_malformed_key_leaves_an_offline_run(home, monkeypatch, tmp_path, capfd, key):
    monkeypatch.setenv("WANDB_API_KEY", key)
    forget()
    folder = run_folder(tmp_path)
    logger, _ = train(folder)
    close_loggers([logger], 0)
    out, err = capfd.readouterr()
    assert err == ""
    (line,) = out.splitlines()
    assert line.startswith("W&B: WANDB_API_KEY invalid: API key ")
    assert key not in line
    assert [row["train/loss"] for _, row in logged_rows(folder)] == [0, 1, 2]


def test_line_break_around_a_key_does_no_harm(server, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("WANDB_API_KEY", f"{KEY}\n")
    forget()
    logger, _ = train(run_folder(tmp_path), start_timeout=60)
    close_loggers([logger], 0)
    assert capfd.readouterr().out.startswith(f"W&B: {server.url}/me/iclevr/runs/")


def test_failure_at_the_start_is_an_error_where_asked_for(server, tmp_path, capfd):
    server.failure = "401"
    with pytest.raises(UserError, match=r"^W&B: .*401.*; logger.wandb.fallback=offline continues"):
        train(run_folder(tmp_path), fallback="error")


@pytest.mark.parametrize("variable", ["WANDB_BASE_URL", "WANDB_MODE", "WANDB_INIT_TIMEOUT"])
def test_wrong_variable_of_wandbs_is_refused_in_one_line(home, monkeypatch, tmp_path, variable):
    monkeypatch.setenv(variable, "nonsense")
    forget()
    name = variable.removeprefix("WANDB_").lower()
    with pytest.raises(UserError, match=rf"^W&B: {name}: .*; {variable}=nonsense$"):
        wandb_logger(run_folder(tmp_path), "iclevr")
    monkeypatch.delenv(variable)


@pytest.mark.parametrize("failure", ["401", "410", *slow("hangs", "500")])
def test_server_that_fails_in_the_middle_costs_one_line(server, tmp_path, capfd, failure):
    folder = run_folder(tmp_path)
    logger, _ = train(folder, start_timeout=60)
    wait_until(lambda: any("file_stream" in path for path in server.requests))
    server.failure = failure
    for step in range(3, 6):
        logger.log_metrics({"train/loss": float(step)}, step)
    begin = time.monotonic()
    close_loggers([logger], 0)
    assert time.monotonic() - begin < 30
    out, err = capfd.readouterr()
    assert err == ""
    _, line = out.splitlines()
    assert "metrics.csv has every step. To upload the rest later: wandb sync " in line
    assert Path(line.split("wandb sync ")[1]).is_dir()
    assert [row["train/loss"] for _, row in logged_rows(folder)] == [0, 1, 2, 3, 4, 5]


def test_wandb_process_that_dies_costs_one_line(home, tmp_path, capfd):
    logger, _ = train(run_folder(tmp_path))
    os.kill(wandb_process(), signal.SIGKILL)
    for step in range(3, 6):
        time.sleep(0.5)  # wandb notices when it writes to the process again
        logger.log_metrics({"train/loss": float(step)}, step)
    logger.log_hyperparams({"a": 1})
    close_loggers([logger], 0)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    _, line = out.splitlines()
    assert "; metrics.csv has every step. To upload the rest later: wandb sync " in line
    other = run_folder(tmp_path, "sweep", "next job")  # in the same process
    close_loggers([train(other)[0]], 0)
    assert len(logged_rows(other)) == 3


def wandb_process():
    """The number of the process that wandb started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for task in Path("/proc/self/task").iterdir():
        children += (task / "children").read_text().split()
    (pid,) = {
        int(child)
        for child in children
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes()
    }
    return pid


# Continued runs.


@pytest.mark.slow
def test_killed_and_resumed_run_shows_each_step_once_everywhere(home, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    command = [sys.executable, "-m", "iclevr_diffusion.train", *SMALL, "logger=all"]
    command += ["trainer.log_every_n_steps=1", "callbacks.checkpoint.every_n_steps=4"]
    command += ["trainer.max_steps=12", "hydra.run.dir=a:b"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = tmp_path / "a:b"
    killed = [*command[:1], "-c", KILLED_AFTER_SEVEN_STEPS, *command[3:]]
    assert subprocess.run(killed, cwd=tmp_path, env=environment).returncode == -signal.SIGKILL
    done = subprocess.run([*command, "resume=true"], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert [row["step"] for row in read_metrics(folder / "metrics.csv")] == list(range(12))
    rows = logged_rows(folder)
    assert [row[STEP] for _, row in rows if "train/loss" in row] == list(range(12))
    assert len({number for number, _ in rows}) == len(rows)
    read = events.EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == list(range(12))
    assert "hp_metric" not in read.Tags()["scalars"]


KILLED_AFTER_SEVEN_STEPS = """
import os, signal
from iclevr_diffusion import train
from iclevr_diffusion.training.loggers import TensorBoard

log = TensorBoard.log_metrics

def log_and_die(self, metrics, step):
    log(self, metrics, step)
    self.save()
    if step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

TensorBoard.log_metrics = log_and_die
train.main()
"""


def test_each_step_is_there_once_after_a_kill(home, tmp_path):
    folder = run_folder(tmp_path)
    logger = wandb_logger(folder, "iclevr")
    for step in range(8):
        logger.log_metrics({"train/loss": float(step), "epoch": 0.0}, step)
    log_image([logger], "sample/grid", Image.new("RGB", (8, 8)), 7)
    close_loggers([logger], 1)
    logger = wandb_logger(folder, "iclevr")  # goes on from a checkpoint after five steps
    for step in range(5, 10):
        logger.log_metrics({"train/loss": 10.0 + step, "epoch": 0.0}, step)
        if step == 7:
            log_image([logger], "sample/grid", Image.new("RGB", (8, 8)), 7)
            logger.log_metrics({"score/test/accuracy": 0.5}, 7)  # the kill came before this one
    close_loggers([logger], 0)
    rows = logged_rows(folder)
    assert [row["train/loss"] for _, row in rows if "train/loss" in row] == [*range(8), 18, 19]
    assert [row[STEP] for _, row in rows if "sample/grid" in row] == [7]
    assert [row[STEP] for _, row in rows if "score/test/accuracy" in row] == [7]
    numbers = [number for number, _ in rows]
    assert numbers == list(range(len(rows)))  # the server drops rows whose number does not rise


def test_what_the_server_has_is_not_sent_again(server, tmp_path):
    folder = run_folder(tmp_path)
    logger = wandb_logger(folder, "iclevr", start_timeout=60)
    for step in range(8):
        logger.log_metrics({"train/loss": float(step)}, step)
    close_loggers([logger], 1)
    forget()
    server.has_up_to(logger.version, 6)  # it was killed before the last row was sent
    server.uploaded.clear()
    csv = MetricsCSV(folder / "metrics.csv")
    for step in range(8):
        csv.log_metrics({"train/loss": float(step)}, step)
    csv.flush()
    logger = wandb_logger(folder, "iclevr", start_timeout=60)
    resume_logging([MetricsCSV(csv.path), logger], 8)
    for step in range(8, 10):
        logger.log_metrics({"train/loss": float(step)}, step)
    close_loggers([logger], 0)
    assert [(row[STEP], row["train/loss"]) for row in server.uploaded] == [(7, 7), (8, 8), (9, 9)]
    assert [row["_step"] for row in server.uploaded] == [7, 8, 9]


def test_steps_that_a_kill_lost_are_taken_from_metrics_csv(home, tmp_path):
    folder = run_folder(tmp_path)
    csv = MetricsCSV(folder / "metrics.csv")
    for step in range(4):
        csv.log_metrics({"train/loss": float(step), "epoch": 0.0}, step)
    csv.flush()
    logger = wandb_logger(folder, "iclevr")
    logger.log_metrics({"train/loss": 0.0, "epoch": 0.0}, 0)
    close_loggers([logger], 1)  # its file ends here
    logger = wandb_logger(folder, "iclevr")
    resume_logging([MetricsCSV(csv.path), logger], 3)
    logger.log_metrics({"train/loss": 3.0}, 3)
    close_loggers([logger], 0)
    assert [row["train/loss"] for _, row in logged_rows(folder)] == [0, 1, 2, 3]


def test_a_file_that_ends_anywhere_is_read_up_to_there(home, tmp_path):
    folder = run_folder(tmp_path)
    logger = wandb_logger(folder, "iclevr")
    for step in range(300):  # several blocks of 32 KiB
        logger.log_metrics({f"metric/{name:03}": float(step) for name in range(20)}, step)
    close_loggers([logger], 0)
    assert len(logged_rows(folder)) == 300
    (file,) = folder.glob("wandb/*run-*/*.wandb")
    whole = file.read_bytes()
    assert len(whole) > 3 * 32768
    for length in (0, 5, 7, 100, 32767, 32770, 65536, len(whole) - 9):
        file.write_bytes(whole[:length])
        rows = [row["metric/000"] for _, row in history(file)]
        assert rows == [float(step) for step in range(len(rows))]
    assert json.dumps(rows)
