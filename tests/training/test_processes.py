"""Two real processes that train together: their numbers, and their ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import assert_same, result
from iclevr_diffusion import train

SETTINGS = (
    "name=run",
    "net=tiny",
    "trainer=cpu",
    "trainer.precision=32-true",  # auto takes bfloat16 on some processors, which rounds too much
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "guidance=cfg",
    "data.image_size=32",
    "data.sequences=16",
    "data.val_fraction=0.2",
    "schedule.timesteps=20",
    "callbacks.scoring.sampler.steps=2",
    "callbacks.scoring.every_n_epochs=0",
)
TWO = ("data.batch_size=2", "trainer=ddp_sim")
WITH_PLACES = (
    "net=uvit",
    "net.channels=[8,16]",
    "net.blocks=[1,1]",
    "net.width=32",
    "net.depth=1",
    "net.head_dim=16",
)
PATIENCE = 1200  # seconds for a loaded machine


STARTED = []


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def start(folder, *arguments):
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "iclevr_diffusion.train", *SETTINGS, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    (run,) = (folder / "outputs" / "run").iterdir()
    return run


def wait_for_a_checkpoint(folder, process):
    def newest():
        return max((path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")), default=0)

    before, end = newest(), time.monotonic() + PATIENCE
    while newest() == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process):
    tasks = Path(f"/proc/{process.pid}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_two_processes_end_together_and_go_on_together(tmp_path):
    ends = ("trainer.max_epochs=3",)
    calm = finish(tmp_path / "calm", *TWO, *ends)
    assert sorted(path.name for path in calm.glob("*")) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "images",
        "metrics.csv",
        "status.json",
        "summary.json",
        "weights",
    ]

    stormy = tmp_path / "stormy"
    settings = (*TWO, *ends, "callbacks.checkpoint.every_n_steps=1")
    # A signal to the first process alone ends both, with a checkpoint.
    process = start(stormy, *settings)
    wait_for_a_checkpoint(stormy, process)
    others = children(process)
    process.send_signal(signal.SIGHUP)  # as when a terminal is closed
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGHUP
    assert "stopped: SIGHUP at step" in err
    assert "Traceback" not in err
    assert not any(map(is_running, others))

    # The death of the second ends the first, with a line, within seconds.
    process = start(stormy, *settings, "resume=true")
    wait_for_a_checkpoint(stormy, process)
    for pid in children(process):
        os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "error: process 1 ended with signal SIGKILL" in err
    assert time.monotonic() - begun < 30

    # The death of the first ends the second.
    process = start(stormy, *settings, "resume=true")
    wait_for_a_checkpoint(stormy, process)
    others = children(process)
    assert others
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while any(map(is_running, others)):
        assert time.monotonic() < end
        time.sleep(0.1)

    stormy = finish(stormy, *settings, "resume=true")
    assert_same(result(stormy), result(calm))
    assert not list(stormy.rglob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("net", [(), WITH_PLACES], ids=["tiny", "with_places"])
def test_one_process_with_the_same_global_batch_sees_the_same_and_continues(tmp_path, run, net):
    two = finish(tmp_path / "two", *TWO, *net, "trainer.max_epochs=2")

    def alone(folder, *arguments):
        folder.mkdir(exist_ok=True)
        os.chdir(folder)  # the fixture ``run`` undoes it
        code, out, err = run(train, *SETTINGS, *net, "data.batch_size=4", *arguments)
        assert code == 0, out + err

    alone(tmp_path / "one", "trainer.max_epochs=2")
    (one,) = (tmp_path / "one" / "outputs" / "run").iterdir()
    assert_close(result(one), result(two))
    for name in ("one", "two"):
        alone(tmp_path / name, "trainer.max_epochs=3", "resume=true")
    assert_close(result(one), result(two))


@pytest.mark.slow
def test_two_processes_stop_early_together(tmp_path):
    stop = ("patience=1", "min_delta=3")  # no second score is better by three
    stop = [f"callbacks.early_stopping.{setting}" for setting in stop]
    scored = ("callbacks.scoring.every_n_epochs=1", "callbacks.scoring.max_conditions=4")
    run = finish(tmp_path, *TWO, "callbacks=early_stopping", *stop, *scored, "trainer.max_epochs=9")
    assert len(list((run / "images").glob("sample_validation_*.png"))) == 2


AS_EACH_RANK = """
import torch
from iclevr_diffusion import train
from iclevr_diffusion.training.gan import GANModule

def on_train_end(self):
    torch.save(self.state_dict(), f"rank{self.global_rank}.pt")

GANModule.on_train_end = on_train_end
train.main()
"""


@pytest.mark.slow
def test_two_processes_of_a_gan_hold_the_same_networks_and_go_on_together(tmp_path):
    script = tmp_path / "as_each_rank.py"
    script.write_text(AS_EACH_RANK)
    settings = [word for word in SETTINGS if not word.startswith(("net=", "guidance", "schedule"))]
    settings = [word for word in settings if not word.startswith("callbacks.scoring.sampler")]
    settings += ["experiment=dcgan", "net.channels=[16,8,8]", "model.batch_sizes=[4,2]"]
    settings += ["data.batch_size=4", "trainer.devices=2", "trainer.max_epochs=2"]

    def train_in(folder, *arguments):
        folder.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, str(script), *settings, *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=PATIENCE,
        )
        ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name, value in ranks[0].items():
            assert torch.equal(value, ranks[1][name]), name
        return ranks[0]

    unbroken = train_in(tmp_path / "unbroken")
    train_in(tmp_path / "broken", "trainer.max_steps=3")
    resumed = train_in(tmp_path / "broken", "resume=true")
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def assert_close(one, two):
    """What rounds otherwise in another order, and nothing else."""
    for checkpoint in ("last", "best"):
        ours, theirs = (part[checkpoint]["state_dict"] for part in (one, two))
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    assert [row.keys() for row in one["rows"]] == [row.keys() for row in two["rows"]]
    for ours, theirs in zip(one["rows"], two["rows"], strict=True):
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_train_an_evaluator_and_one_of_them_measures_it(tmp_path):
    settings = ("net.widths=[4,4,8]", "net.hidden=8", "data.sequences=4", "data.batch_size=4")
    few = ("data.unclear.sequences=3", "trainer.max_epochs=1", "trainer.enable_progress_bar=false")
    done = subprocess.run(
        [sys.executable, "-m", "iclevr_diffusion.train_evaluator", *settings, *few, TWO[1]],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("crowded        800 frames") == 1
