"""File systems that refuse locks, memory maps, renames or syncs: the work is done all the same."""

import errno
import fcntl
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import sample, train
from iclevr_diffusion.data.cache import as_tensor, cached_array
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.evaluation.classifier import load_evaluator
from iclevr_diffusion.training.callbacks.checkpoint import AtomicCheckpointIO
from iclevr_diffusion.utils import files, weights
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import is_used, used_alone, write_text

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EIO)
NO_MAPS = (errno.ENODEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOMEM)


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch):
    monkeypatch.setattr(files, "_said", set())


def refusing(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def refuse_maps(monkeypatch, number=errno.ENODEV):
    """As numpy, torch and safetensors meet a file system without memory maps."""
    reason = os.strerror(number)

    def refuse(name, *_, **__):
        raise RuntimeError(f"unable to mmap 1234 bytes from file <{name}>: {reason} ({number})")

    monkeypatch.setattr(mmap, "mmap", refusing(number))
    monkeypatch.setattr(torch.UntypedStorage, "from_file", staticmethod(refuse))
    monkeypatch.setattr(weights, "safe_open", refusing(number))


def own_messages(caplog):
    """What this package has logged; loops of W&B's that end late log as well."""
    return [r.message for r in caplog.records if r.name.startswith("iclevr_diffusion")]


@pytest.mark.parametrize("number", NO_LOCKS)
def test_folder_is_used_where_there_are_no_locks_with_one_warning(
    tmp_path, monkeypatch, caplog, number
):
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    with used_alone(tmp_path / "run"), used_alone(tmp_path / "run"):
        assert not is_used(tmp_path / "run")
    (warning,) = own_messages(caplog)
    assert f"{tmp_path / 'run'}: this file system refuses file locks" in warning
    assert "a second training in the same folder is not detected" in warning


@pytest.mark.parametrize("number", NO_MAPS)
def test_cached_array_is_read_where_it_cannot_be_mapped(tmp_path, monkeypatch, caplog, number):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    cached_array(tmp_path, "key", array.copy)
    refuse_maps(monkeypatch, number)
    read = cached_array(tmp_path, "key", pytest.fail)
    np.testing.assert_array_equal(read, array)
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1
    tensor = as_tensor(read)
    assert tensor.data_ptr() == read.ctypes.data
    tensor[0] = 0
    cached_array(tmp_path, "key", pytest.fail)
    (warning,) = own_messages(caplog)
    assert "this file system refuses memory maps" in warning
    np.testing.assert_array_equal(cached_array(tmp_path, "other", lambda: array.T), array.T)


@pytest.mark.parametrize(
    "error", [ValueError("mmap length is greater than file size"), MemoryError("no more maps")]
)
def test_cached_array_is_read_whatever_a_memory_map_raises(tmp_path, monkeypatch, caplog, error):
    array = np.arange(24, dtype=np.uint8)
    cached_array(tmp_path, "key", array.copy)

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    np.testing.assert_array_equal(cached_array(tmp_path, "key", pytest.fail), array)
    (warning,) = own_messages(caplog)
    assert f"refuses memory maps ({error})" in warning


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b""])
def test_damaged_array_is_noticed_without_a_map(tmp_path, monkeypatch, damage):
    array = np.arange(24, dtype=np.uint8)
    cached_array(tmp_path, "key", array.copy)
    path = tmp_path / "key.npy"
    path.write_bytes(damage(path.read_bytes()))
    refuse_maps(monkeypatch)
    np.testing.assert_array_equal(cached_array(tmp_path, "key", array.copy), array)


def test_weights_and_evaluators_are_read_where_they_cannot_be_mapped(
    weights_folder, monkeypatch, caplog
):
    expected = load_model(weights_folder).net.state_dict(), load_evaluator(None).state_dict()
    refuse_maps(monkeypatch)
    for net, state in zip(
        (load_model(weights_folder).net, load_evaluator(None)), expected, strict=True
    ):
        for name, value in net.state_dict().items():
            assert torch.equal(value, state[name])
    (warning,) = own_messages(caplog)
    assert "this file system refuses memory maps" in warning


def test_damaged_weights_are_still_damaged_without_maps(run, weights_folder, tmp_path, monkeypatch):
    (tmp_path / "bad.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    refuse_maps(monkeypatch)
    code, _, err = run(sample, "weights=bad.ckpt", "labels=red cube")
    assert code == 2
    assert "bad.ckpt is damaged" in err


@pytest.mark.slow
def test_run_is_trained_and_resumed_without_locks_maps_and_renames(run, tmp_path, monkeypatch):
    refuse_maps(monkeypatch)
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOTSUP))
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    monkeypatch.setattr(Path, "replace", refusing(errno.EXDEV))
    monkeypatch.setattr(Path, "rename", refusing(errno.EXDEV))
    for arguments in (("trainer.max_steps=1",), ("trainer.max_steps=2", "resume=true")):
        code, out, err = run(train, *SMALL, *arguments)
        assert code == 0, out + err
    (folder,) = (tmp_path / "outputs" / "run").iterdir()
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert out.count("file locks") + out.count("memory maps") <= 3  # each warning once


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_refused_rename_is_a_copy(tmp_path, monkeypatch, caplog, number, weights_folder):
    write_text(tmp_path / "figures.json", "one")
    monkeypatch.setattr(Path, "replace", refusing(number))
    write_text(tmp_path / "figures.json", "two")
    assert (tmp_path / "figures.json").read_text() == "two"
    model = load_model(weights_folder)
    for _ in range(2):
        save_model(model, tmp_path / "weights")
    load_model(tmp_path / "weights")
    AtomicCheckpointIO().save_checkpoint(
        {"net": nn.Linear(2, 2).state_dict()}, tmp_path / "last.ckpt"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures.json",
        "last.ckpt",
        "weights",
    ]
    (warning,) = own_messages(caplog)
    assert "refuses to rename files" in warning


def test_full_disk_is_not_taken_for_a_refused_rename(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left") as error:
        write_text(tmp_path / "figures.json", "one")
    assert error.value.filename == str(tmp_path / "figures.json")
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_opened_to_be_synced_is_written_to(tmp_path, monkeypatch):
    opens = os.open

    def no_folders(path, *arguments, **keywords):
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        return opens(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", no_folders)
    write_text(tmp_path / "figures.json", "one")
    assert (tmp_path / "figures.json").read_text() == "one"


def test_cache_that_cannot_be_written_is_one_line_unless_it_is_filled(tmp_path, monkeypatch):
    array = np.arange(6)
    cached_array(tmp_path / "cache", "key", array.copy)
    opens = Path.open

    def read_only(path, mode="r", *arguments, **keywords):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system")
        return opens(path, mode, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", read_only)
    np.testing.assert_array_equal(cached_array(tmp_path / "cache", "key", pytest.fail), array)
    with pytest.raises(UserError, match=r"cannot write to the cache .* read-only file system"):
        cached_array(tmp_path / "cache", "other", array.copy)
