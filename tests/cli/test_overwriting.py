"""Folders that hold a run, or files of somebody else's: nothing in them is overwritten."""

import os
from fnmatch import fnmatch
from pathlib import Path

import pytest

from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import report, sample, train, train_evaluator
from iclevr_diffusion.cli.run_dir import WRITTEN


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder below ``folder``: when it was changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def runs(tmp_path):
    """Two finished runs and a link to the first, as far as their names go."""
    for name in ("a", "b"):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "status.json", "summary.json", "checkpoints/last.ckpt"):
            (folder / file).write_text(f"{name}'s {file}")
    (tmp_path / "link").symlink_to("runs/a")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("program", "words", "line"),
    [
        (train, ["hydra.run.dir=runs/a/"], "resume it with resume=runs/a, or name another"),
        (train, ["hydra.run.dir=runs/b/../a"], "name another folder"),
        (train, ["hydra.run.dir=link"], "resume it with resume=link, or name another"),
        (
            train,
            ["hydra.run.dir=runs/a", "hydra.output_subdir=.hydra", "hydra/job_logging=default"],
            "checkpoints already exists and is not overwritten",
        ),
        (train, ["hydra.run.dir=runs/a", "resume=runs/b"], "differ; leave out hydra.run.dir"),
        (train, ["hydra.run.dir=runs", "resume=true"], "no run has begun in runs"),
        (train_evaluator, ["hydra.run.dir=runs/a"], "resume it with resume=runs/a"),
    ],
)
def test_folder_of_a_run_is_refused_and_nothing_in_it_changes(
    run, runs, tmp_path, program, words, line
):
    before = state(tmp_path)
    small = SMALL if program is train else ()
    code, out, err = run(program, *small, *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert line in err
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("program", "words", "file"),
    [
        (sample, ["labels='red cube'", "strip=true"], "strip.png"),
        (sample, ["labels='red cube'", "animation=true"], "denoising.png"),
        (report, ["runs"], "report.html"),
        (report, ["runs"], "report.md"),
    ],
)
def test_output_of_an_earlier_command_is_not_overwritten(run, runs, tmp_path, program, words, file):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_text("of before")
    before = state(tmp_path)
    code, _, err = run(program, *words, "out=out")
    assert code == 2
    assert err == f"error: out: {file} already exists and is not overwritten; name another folder\n"
    assert state(tmp_path) == before


@pytest.mark.slow
def test_run_beside_the_files_of_others_changes_none_and_writes_only_known_names(run, tmp_path):
    mine = ("thesis.tex", ".vimrc.old", ".notes.2024.partial")
    for name in mine:
        (tmp_path / name).write_text("mine")
    before = state(tmp_path)
    words = (*SMALL, "trainer.max_steps=1", "hydra.run.dir=.", "paths.cache=cache")
    assert run(train, *words)[0] == 0
    after = state(tmp_path)
    assert {name: after[name] for name in mine} == {name: before[name] for name in mine}
    new = {path.name for path in tmp_path.iterdir()} - {*mine, "cache", ".lock"}
    assert "config.yaml" in new
    assert [name for name in new if not any(fnmatch(name, known) for known in WRITTEN)] == []
    code, _, err = run(train, *words)
    assert code == 2
    assert "resume it with resume=., or name another folder" in err
    assert state(tmp_path) == after


def test_folder_that_the_user_made_stays_when_the_command_is_refused(run, tmp_path):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    before = state(tmp_path)
    for words in (["hydra.run.dir=runs/new"], ["hydra.run.dir=runs/new", "hydra.job.chdir=true"]):
        assert run(train, *SMALL, *words, "net.labels=film")[0] == 2
        assert state(tmp_path) == before
    assert run(train, *SMALL, "hydra.run.dir=runs/other/x", "net.labels=film")[0] == 2
    assert os.listdir(tmp_path / "runs") == ["new"]  # noqa: PTH208


@pytest.mark.slow
def test_second_job_in_the_folder_of_another_is_refused(run, tmp_path):
    words = ("-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=x/${name}")
    code, _, err = run(train, *SMALL, *words, "net.labels=film")
    assert code == 2
    first, second = err.splitlines()
    assert first.startswith("error in job 0 (")
    assert "net.labels" in first
    assert second.startswith("error in job 1 (")
    assert "x/run is another job's folder, which is not overwritten; put ${hydra.job.num}" in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_job_outside_the_folder_of_its_sweep_is_refused(run, runs, tmp_path):
    before = state(tmp_path)
    words = ("-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=../runs/${name}")
    code, _, err = run(train, *SMALL, "name=a", *words)
    assert code == 2
    assert err.count("hydra.sweep.subdir=../runs/a leads out of the sweep's folder") == 2
    assert {**state(tmp_path), ".": before["."]} == before
