"""Sweeps with launchers and a search; SLURM is a sbatch, a srun and a sacct of our own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import train
from iclevr_diffusion.cli import jobs
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.schema import Evaluate
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.training.loggers.wandb_files import records
from iclevr_diffusion.utils.status import STATUS

ONE_STEP = (*SMALL, "trainer.max_steps=1")


def statuses():
    """What became of each job of the one sweep there is, by its number."""
    sweep = Path("outputs/multirun")
    found = [json.loads(path.read_text()) for path in sweep.rglob("status.json")]
    return {status["job"]: status for status in found}


@pytest.mark.slow
def test_joblib_runs_jobs_as_if_alone_and_one_failure_stops_no_other(run, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(train, *ONE_STEP, "seed=2", "name=alone")[0] == 0
    (alone,) = Path("outputs/alone").iterdir()
    words = ("-m", "seed=0,wrong,2", "hydra/launcher=joblib", "logger=wandb")  # two at a time
    code, out, err = run(train, *words, *ONE_STEP)
    assert code == 2
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert line.startswith("error in job 1 (seed=wrong ")
    assert line.endswith("seed must be a whole number, got 'wrong'")
    assert re.search(r"\n   1  failed +seed=wrong\n", out)

    assert {job: status["status"] for job, status in statuses().items()} == {
        0: "finished",
        1: "failed",
        2: "finished",
    }
    (sweep,) = Path("outputs/multirun").iterdir()
    assert sorted(path.name for path in (sweep / "1_run").iterdir()) == [jobs.LOG, STATUS]
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (sweep / "2_run", alone)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    runs = [
        next(record.run for record in records(path) if record.HasField("run"))
        for path in sweep.rglob("*.wandb")
    ]
    assert {run.run_group for run in runs} == {sweep.name}
    ids = sorted(run.run_id for run in runs)
    assert [run_id[:-9] for run_id in ids] == [f"{sweep.name}-0_run", f"{sweep.name}-2_run"]


@pytest.mark.slow
def test_submitit_local_runs_jobs_over_several_devices(run):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("-m", "net.labels=none,film", "hydra/launcher=submitit_local", "trainer.devices=2")
    code, _, err = run(train, *words, *ONE_STEP)
    assert code == 2
    assert "error in job 1 (net.labels=film " in err
    assert {job: status["status"] for job, status in statuses().items()} == {
        0: "finished",
        1: "failed",
    }
    (summary,) = Path("outputs/multirun").glob("*/0_run/summary.json")
    assert json.loads(summary.read_text())["machine"]["processes"] == 2


@pytest.mark.slow
def test_ray_runs_jobs(run):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the extra ray is not installed")
    room = [f"hydra.launcher.ray.remote.{what}" for what in ("num_gpus=0", "num_cpus=1")]
    words = ("-m", "net.labels=none,film", "hydra/launcher=ray", *room)
    code, _, err = run(train, *words, *ONE_STEP)
    assert code == 2
    assert "error in job 1 (net.labels=film " in err
    assert [statuses()[job]["status"] for job in (0, 1)] == ["finished", "failed"]


SBATCH = """#!/bin/bash
# A queue that starts each task of the array at once, and answers.
cp "$1" "$(dirname "$0")/script"
export SLURM_JOB_ID=9 SLURM_ARRAY_JOB_ID=9 SLURM_JOB_NAME=run SLURM_JOB_NUM_NODES=1
export SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_NODEID=0 SLURM_JOB_NODELIST=localhost
for task in 0 1; do
  SLURM_ARRAY_TASK_ID=$task bash "$1" > /dev/null 2>&1 < /dev/null &
done
echo "Submitted batch job 9"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_ID=0
exec "$@"
"""
SACCT = "#!/bin/bash\necho 'JobID|State|NodeList'\n"


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A folder in front of PATH with what submitit calls; the batch script is copied there."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_slurm_gets_a_script_that_runs_each_job_and_lets_it_go_on(run, slurm):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = ("partition=gpu", "timeout_min=30", "signal_delay_s=90", "cpus_per_task=4")
    words = [f"hydra.launcher.{setting}" for setting in settings]
    sweep = ("-m", "net.labels=none,film", "hydra/launcher=submitit_slurm", *words)
    code, _, err = run(train, *sweep, *ONE_STEP)
    assert code == 2
    assert "error in job 1 (net.labels=film " in err
    assert [statuses()[job]["status"] for job in (0, 1)] == ["finished", "failed"]
    script = (slurm / "script").read_text().splitlines()
    options = {line.removeprefix("#SBATCH --") for line in script if line.startswith("#SBATCH")}
    assert options >= {
        "array=0-1%2",
        "partition=gpu",
        "nodes=1",
        "ntasks-per-node=1",
        "gpus-per-node=1",
        "cpus-per-task=4",
        "mem=32GB",
        "time=30",
        "signal=USR1@90",
        "requeue",
        "open-mode=append",
    }
    (command,) = [line for line in script if line.startswith("srun ")]
    assert f" {sys.executable} -u -m submitit.core._submit " in command


@pytest.mark.slow
def test_sigterm_to_a_sweep_saves_its_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=0,1"]
    words += [*SMALL, "trainer.max_epochs=100000", "callbacks.checkpoint.every_n_steps=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "iclevr_diffusion.train", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.rglob("last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: SIGTERM; to resume, run the same command with resume=true" in err
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    (status,) = [json.loads(path.read_text()) for path in sweep.rglob(STATUS)]
    assert (status["job"], status["status"]) == (0, "stopped")
    assert "last.ckpt: the same command" in status["message"]
    assert not (sweep / jobs.STOP).exists()


@pytest.mark.slow
def test_failed_job_leaves_why_and_a_purely_wrong_sweep_nothing(run, tmp_path):
    code, out, err = run(train, "-m", "net.labels=none,film", *ONE_STEP)
    assert (code, err.count("\n")) == (2, 1)
    good, bad = statuses()[0], statuses()[1]
    assert (good["status"], bad["status"], bad["exit_code"]) == ("finished", "failed", 2)
    assert 0 <= good["score"] <= 1
    assert " job  status    score   settings\n" in out
    assert f"0  finished  {good['score']:.4f}" in out
    assert bad["overrides"][0] == "net.labels=film"
    assert bad["message"] in err
    before = sorted(tmp_path.rglob("*"))
    assert run(train, "-m", "net.labels=one,two", *ONE_STEP)[0] == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_without_jobs_is_a_mistake(run, tmp_path):
    code, _, err = run(train, "-m", "seed=range(0,0)", *ONE_STEP)
    assert (code, err) == (2, "error: the sweep has no jobs: one of its settings has no values\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda path: path.stem
)
def test_ready_sweep_names_settings_that_its_command_has(path):
    given = {"train": [], "evaluate": ["weights=w"]}
    (command,) = re.findall(r"^# For (train|evaluate): ", path.read_text(), re.MULTILINE)
    if path.stem == "search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [f"sweep={path.stem}", *given[command]], return_hydra_config=True)
        if command == "train":
            assert cfg.hydra.sweeper.params
            settings = [f"{setting}=1" for setting in cfg.hydra.sweeper.params]
            compose(command, [f"sweep={path.stem}", *settings], return_hydra_config=True)
        else:
            with open_dict(cfg):
                del cfg.hydra
            check_config(cfg, Evaluate)
            assert [*cfg.sampler.values(), cfg.guidance.scale] != [None, None, None]


@pytest.mark.slow
def test_search_uses_the_validation_list_and_continues_where_it_stopped(run):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("sweep=search", *ONE_STEP)
    code, _, err = run(train, *search, "hydra.sweeper.n_trials=1")
    assert code == 0, err
    first = statuses()[0]
    code, out, err = run(train, *search, "hydra.sweeper.n_trials=2", "resume=true")
    assert code == 0, err
    assert out.count("this run is finished") == 1
    again, second = statuses()[0], statuses()[1]
    assert again["score"] == first["score"]
    assert again["overrides"][:3] == first["overrides"][:3] != second["overrides"][:3]
    (best,) = Path("outputs/multirun").glob("*/optimization_results.yaml")
    assert f"best_value: {max(first['score'], second['score'])}" in best.read_text()
    summary = json.loads((best.parent / "1_run" / "summary.json").read_text())
    assert second["score"] == summary["weights"]["scores"]["score/validation/accuracy"]


@pytest.mark.slow
def test_search_of_which_every_trial_fails_ends_with_their_lines(run, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ("sweep=search", "hydra.sweeper.n_trials=2", "net.labels=film")
    code, _, err = run(train, *words, *ONE_STEP)
    assert code == 2
    said = [line for line in err.splitlines() if line.startswith("error")]
    assert [line[:14] for line in said] == ["error in job 0", "error in job 1"]
    assert list(tmp_path.rglob("*")) == []


def test_launcher_that_is_not_installed_is_named_with_the_extra_that_brings_it(run, tmp_path):
    try:
        import hydra_plugins.hydra_ray_launcher  # noqa: F401
    except ModuleNotFoundError:
        code, _, err = run(train, "-m", "hydra/launcher=ray", "seed=0,1", *ONE_STEP)
        assert code == 2
        assert err == "error: ray is not installed: pip install '.[ray]'\n"
        assert list(tmp_path.rglob("*")) == []
    else:
        pytest.skip("the extra ray is installed")


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Run a Python program in place of a job's command: the folder, and how to."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["hydra.job.num=3"], return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.cwd = str(tmp_path)
        cfg.hydra.sweep.dir = "sweep"
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg)
    folder = tmp_path / "sweep" / "3_run"
    folder.mkdir(parents=True)

    def work(program):
        monkeypatch.setattr(jobs, "command", lambda *_: [sys.executable, "-c", program])
        before = signal.getsignal(signal.SIGINT)
        try:
            return jobs.run_as_command(jobs.Origin("train", debug=False, pid=-1), folder)
        finally:
            signal.signal(signal.SIGINT, before)

    return folder, work


DIES = "import os; print('so far', flush=True); os.kill(os.getpid(), 9)"
TELLS = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
print("ready", flush=True)
time.sleep(60)
"""


def when_ready(folder, act):
    def wait():
        while "\nready\n" not in (folder / jobs.LOG).read_text():
            time.sleep(0.01)
        act()

    while_working = threading.Thread(target=wait)
    (folder / jobs.LOG).touch()
    while_working.start()


def test_job_that_dies_without_a_word_counts_as_failed(worker):
    folder, work = worker
    assert work(DIES) is None
    status = jobs.read_status(folder)
    assert (status["status"], status["job"], status["exit_code"]) == ("failed", 3, 1)
    assert "it ended with signal SIGKILL; see " in status["message"]
    assert "so far" in (folder / jobs.LOG).read_text()


def test_job_ends_when_its_sweep_is_stopped_and_the_next_does_not_begin(worker):
    folder, work = worker
    stop = folder.parent / jobs.STOP
    when_ready(folder, stop.touch)
    work(TELLS)
    assert "code 143" in jobs.read_status(folder)["message"]
    for path in folder.iterdir():
        path.unlink()
    assert work(TELLS) is None
    assert not folder.exists()


def test_worker_hands_sigterm_on(worker):
    folder, work = worker
    when_ready(folder, lambda: os.kill(os.getpid(), signal.SIGTERM))
    work(TELLS)
    assert "code 143" in jobs.read_status(folder)["message"]


def test_worker_of_a_job_that_is_queued_again_leaves_no_result(worker, monkeypatch):
    class Left(BaseException): ...

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    folder, work = worker
    when_ready(folder, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(Left, match=str(128 + signal.SIGUSR1)):
        work(TELLS)
    assert jobs.read_status(folder)["status"] == "running"
