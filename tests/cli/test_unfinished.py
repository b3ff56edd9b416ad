"""The hint at an unfinished run of the same command."""

from pathlib import Path

import pytest

from helpers import SMALL_RUN
from iclevr_diffusion import train
from iclevr_diffusion.cli.running import unfinished_run
from iclevr_diffusion.utils.files import used_alone
from iclevr_diffusion.utils.status import write_status

COMMAND = ["experiment=cosine_eps", "seed=1"]


def earlier_run(name, status="stopped", overrides=COMMAND, checkpoint=True):
    folder = Path("outputs", "run", name)
    (folder / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (folder / "checkpoints" / "last.ckpt").touch()
    write_status(folder, status, "", overrides)
    return folder


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda: unfinished_run(Path("outputs/run/new"), COMMAND)


@pytest.mark.parametrize("status", ["stopped", "failed", "running"])  # running, but killed
def test_unfinished_run_of_the_same_command_is_found(found, status):
    assert found() is None
    earlier = earlier_run("a", status, ["seed=1", "experiment=cosine_eps", "resume=true"])
    assert found() == earlier


def test_other_runs_are_not(found):
    earlier_run("finished", "finished")
    earlier_run("another", overrides=["experiment=cosine_eps", "seed=2"])
    earlier_run("empty", checkpoint=False)
    earlier_run("odd", overrides={"seed": 1})
    assert found() is None
    with used_alone(earlier_run("in_progress", "running")):
        assert found() is None


@pytest.mark.slow
def test_command_says_how_to_resume_it_and_starts_anew(run):
    command = (*SMALL_RUN, "trainer.max_steps=1")
    earlier = earlier_run("earlier", overrides=command)
    code, out, err = run(train, *command)
    assert code == 0, err
    assert f"resume={earlier} continues it instead\n" in out
    code, out, _ = run(train, *command, "seed=1")
    assert (code, "unfinished" in out) == (0, False)
