"""Jobs of SLURM and sweeps, stopped and started again. SLURM is its environment and a scontrol."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import train
from iclevr_diffusion.cli.run_dir import new_or_latest

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
LONG = ("trainer.max_epochs=100000", "callbacks.checkpoint.every_n_steps=1")


def job(folder, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "iclevr_diffusion.train", *SMALL, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **SLURM, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_step(run, process):
    last = run / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.is_file() else None
    while not last.is_file() or last.stat().st_mtime_ns == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_requeued_job_continues_in_its_folder_and_its_wandb_run(tmp_path):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    scontrol.chmod(0o755)
    path = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}", "WANDB_MODE": "offline"}
    run = tmp_path / "outputs" / "run" / "job_77"

    process = job(tmp_path, *LONG, "logger=wandb", **path)
    wait_for_a_step(run, process)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1
    assert "stopped: SIGUSR1 at step" in err
    assert "Traceback" not in err
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77\n"
    first = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["progress"]

    # The queue starts the very same command again.
    process = job(tmp_path, *LONG, "logger=wandb", SLURM_RESTART_COUNT="1", **path)
    wait_for_a_step(run, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    then = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["progress"]
    assert then["steps"] > first["steps"]
    assert [folder.name for folder in run.parent.iterdir()] == ["job_77"]
    parts = list(run.glob("wandb/offline-run-*"))
    assert len(parts) == 2
    (only,) = {folder.name.split("-", 3)[-1] for folder in parts}
    assert only.startswith("run-job_77-")


def test_slurm_job_has_one_folder_for_all_its_processes(monkeypatch, tmp_path):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    new_or_latest.cache_clear()
    folder = new_or_latest(str(tmp_path), False)
    assert folder == str(tmp_path / "job_77")
    for name, value, other in (
        ("SLURM_STEP_ID", "1", "job_77_1"),
        ("SLURM_ARRAY_TASK_ID", "5", "job_70_5_1"),
    ):
        monkeypatch.setenv(name, value)
        if "ARRAY" in name:
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
        new_or_latest.cache_clear()
        assert new_or_latest(str(tmp_path), False) == str(tmp_path / other)
    new_or_latest.cache_clear()


@pytest.mark.slow
def test_second_training_of_a_slurm_job_does_not_write_over_the_first(run, monkeypatch, tmp_path):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert run(train, *SMALL, "trainer.max_steps=1")[0] == 0
    code, _, err = run(train, *SMALL, "trainer.max_steps=1")
    assert code == 2
    assert "this SLURM job has trained there already" in err
    assert run(train, *SMALL, "trainer.max_steps=2", "resume=true")[0] == 0


@pytest.mark.slow
def test_checkpoint_that_somebody_left_in_the_folder_is_not_taken(run, monkeypatch, tmp_path):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"Lightning would read this")
    code, _, err = run(train, *SMALL, "trainer.max_steps=1")
    assert code == 0, err


@pytest.mark.slow
def test_sweep_is_resumed_where_it_stood(run, tmp_path):
    sweep = ("-m", "seed=0,1", *SMALL, "trainer.max_epochs=2")
    assert run(train, *sweep)[0] == 0
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    # As if the second job had been killed in its report, and a third had not begun.
    (folder / "1_run" / "summary.json").write_text('{"steps": ')
    code, out, err = run(train, "-m", "seed=0,1,2", *sweep[2:], "resume=true")
    assert code == 0, err
    assert "this run is finished" in out
    assert [path.name for path in (tmp_path / "outputs" / "multirun").iterdir()] == [folder.name]
    jobs = sorted(path.parent.name for path in folder.glob("*/summary.json"))
    assert jobs == ["0_run", "1_run", "2_run"]


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_begins_anew_in_its_folder(run, tmp_path):
    assert run(train, *SMALL, "trainer.max_steps=1")[0] == 0
    (folder,) = (tmp_path / "outputs" / "run").iterdir()
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    code, _, err = run(train, *SMALL, "trainer.max_steps=1", "resume=true")
    assert code == 0, err
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert Path(folder / "checkpoints" / "last.ckpt").is_file()
