"""Full disks, stale files, folders in use, damaged files: nothing that was there is lost."""

import fcntl
import hashlib
import subprocess
from contextlib import suppress

import pytest
import torch

from helpers import SMALL_RUN as SMALL
from helpers import assert_same, result
from iclevr_diffusion import train
from iclevr_diffusion.cli.run_dir import new_folder
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import atomic_path, remove_partial, used_alone, write_text
from iclevr_diffusion.utils.status import STATUS


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk, leave):
    """Leave so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size // 4096 * 4096 - leave)
    return filler


def hashes(folder):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("config.yaml", "metrics.csv", "filler")
    }


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 1_500_000])
def test_full_disk_loses_nothing_says_so_and_the_run_continues(run, small_disk, tmp_path, leave):
    assert run(train, *SMALL, "trainer.max_epochs=2", "paths.outputs=calm")[0] == 0
    outputs = (f"paths.outputs={small_disk}", f"paths.cache={tmp_path / 'cache'}")
    assert run(train, *SMALL, *outputs, "trainer.max_epochs=1")[0] == 0
    (folder,) = (small_disk / "run").iterdir()
    filler = fill(small_disk, leave)
    before = hashes(folder)
    del before[folder / STATUS]  # it says "failed" where there is room for that
    code, _, err = run(train, *SMALL, *outputs, "trainer.max_epochs=2", "resume=true")
    assert code == (2 if leave == 0 else 1)
    assert err.splitlines()[-1].startswith("error: ")
    assert "no space left on the disk" in err.splitlines()[-1]
    assert ("config.yaml" if leave == 0 else ".ckpt: no space") in err
    assert "Traceback" not in err
    assert hashes(folder).items() >= before.items()  # images may have found room
    torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    filler.unlink()
    code, _, err = run(train, *SMALL, *outputs, "trainer.max_epochs=2", "resume=true")
    assert code == 0, err
    (calm,) = (tmp_path / "calm" / "run").iterdir()
    ours, theirs = result(folder), result(calm)
    for rows in (ours["rows"], theirs["rows"]):
        for row in rows:  # the first of the two runs drew at its end
            for name in [name for name in row if name.startswith("score/")]:
                del row[name]
    assert_same(ours["last"]["state_dict"], theirs["last"]["state_dict"])
    assert_same(ours["last"]["optimizer_states"], theirs["last"]["optimizer_states"])
    assert_same(ours["rows"], theirs["rows"])


def test_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "figures.json"
    write_text(path, "one")
    with pytest.raises(FileNotFoundError), atomic_path(path) as partial:
        partial.with_name("gone").replace(partial)
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    assert path.read_text() == "one"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".weights.12.partial").mkdir()
    (tmp_path / ".weights.12.partial" / "part").write_text("")
    (tmp_path / ".weights.12.old").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.12.partial").write_text("half")
    (tmp_path / "checkpoints" / "last.ckpt").write_text("whole")
    others = {
        "mine.partial",
        ".bashrc.old",
        "a.12.partial",
        ".film.mkv.partial",
        ".x.12-34.partial",
    }
    for name in (*others, ".last.ckpt.12-0123abcd.partial"):
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {*others, "checkpoints", "last.ckpt"}


def test_a_folder_is_used_by_one_process_at_a_time(tmp_path):
    with used_alone(tmp_path / "run"):
        pass
    first, second = used_alone(tmp_path / "run"), used_alone(tmp_path / "run")
    with first, pytest.raises(UserError, match="another process"):
        second.__enter__()


@pytest.mark.slow
def test_run_in_use_is_not_resumed_twice(run, tmp_path):
    assert run(train, *SMALL, "trainer.max_steps=1")[0] == 0
    (folder,) = (tmp_path / "outputs" / "run").iterdir()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run(train, *SMALL, "trainer.max_steps=2", "resume=true")
    assert (code, err) == (
        2,
        f"error: {folder}: another process is training there\n",
    )


def test_two_runs_at_the_same_time_have_two_folders(tmp_path, monkeypatch):
    import iclevr_diffusion.cli.run_dir as folders_module

    now = iter([folders_module.datetime(2026, 1, 1)] * 2 + [folders_module.datetime(2026, 1, 2)])

    class Clock:
        @staticmethod
        def now():
            return next(now)

    monkeypatch.setattr(folders_module, "datetime", Clock)
    folders = []
    for _ in range(2):
        new_folder.cache_clear()
        folders.append(new_folder(str(tmp_path)))
    new_folder.cache_clear()
    assert len(set(folders)) == 2


@pytest.mark.slow
def test_some_checkpoints_stay(run, tmp_path):
    keep = "callbacks.checkpoint.keep_every_n_epochs=2"
    assert run(train, *SMALL, keep, "trainer.max_epochs=5")[0] == 0
    (folder,) = (tmp_path / "outputs" / "run").iterdir()
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "epoch_0002.ckpt", "epoch_0004.ckpt", "last.ckpt"]


OTHER_RUNS = {
    "net.head_dim=16": "net.",
    "schedule=linear": "schedule.",
    "prediction=sample": "prediction=epsilon, not sample",
    "prediction.min_snr_gamma=5": "prediction.min_snr_gamma=null, not 5",
    "prediction.data_std=0.1": "prediction.data_std=null, not 0.1",
    "prediction.timestep_shift=0.5": "prediction.timestep_shift=1.0, not 0.5",
    "guidance=cfg": "label_drop=0.0, not 0.1",
    "data.sequences=9": "data.sequences=8, not 9",
    "data.val_fraction=0.4": "data.val_fraction=0.2, not 0.4",
    "data.batch_size=2": "data.batch_size=4, not 2",
    "seed=1": "seed=0, not 1",
    "optimizer.lr=1": "optimizer.lr=0.0001, not 1",
    "callbacks.ema.decay=0.5": "ema.decay=0.999, not 0.5",
    "trainer.accumulate_grad_batches=2": "accumulate_grad_batches=1, not 2",
}


@pytest.mark.slow
def test_another_run_is_not_resumed(run, tmp_path):
    assert run(train, *SMALL, "trainer.max_steps=1")[0] == 0
    (folder,) = (tmp_path / "outputs" / "run").iterdir()
    config = (folder / "config.yaml").read_text()
    for change, name in OTHER_RUNS.items():
        small = [item for item in SMALL if item.split("=")[0] != change.split("=")[0]]
        code, _, err = run(train, *small, change, "trainer.max_steps=2", "resume=true")
        assert code == 2, change
        assert f"was trained with {name}" in err
        assert (folder / "config.yaml").read_text() == config


@pytest.mark.slow
def test_harmless_changes_are_resumed(run):
    assert run(train, *SMALL, "trainer.max_epochs=1")[0] == 0
    changes = (
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "logger=tensorboard",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.scoring.sampler.steps=3",
        "sampler.steps=3",
        "guidance.scale=1.0",
    )
    code, _, err = run(train, *SMALL, *changes, "resume=true")
    assert code == 0, err
