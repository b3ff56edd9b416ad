import errno
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from iclevr_diffusion.data import cache
from iclevr_diffusion.data.cache import as_tensor, cached_array
from iclevr_diffusion.utils.errors import UserError

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def never() -> np.ndarray:
    raise AssertionError("built although the cache holds it")


def test_an_array_is_built_once_and_comes_back_equal(tmp_path: Path) -> None:
    first = cached_array(tmp_path / "cache", "key", ARRAY.copy)
    second = cached_array(tmp_path / "cache", "key", never)
    for array in (first, second):
        assert array.dtype == ARRAY.dtype
        np.testing.assert_array_equal(array, ARRAY)


def test_the_cache_file_is_a_plain_npy_file_and_nothing_else_is_left(tmp_path: Path) -> None:
    cached_array(tmp_path, "key.with.dots", ARRAY.copy)
    assert [path.name for path in tmp_path.iterdir()] == ["key.with.dots.npy"]
    np.testing.assert_array_equal(np.load(tmp_path / "key.with.dots.npy"), ARRAY)


def test_arrays_in_any_memory_layout_are_stored_by_value(tmp_path: Path) -> None:
    np.testing.assert_array_equal(cached_array(tmp_path, "t", lambda: ARRAY.T), ARRAY.T)


def test_an_array_without_elements_can_be_cached(tmp_path: Path) -> None:
    assert cached_array(tmp_path, "key", lambda: np.zeros((0, 3), np.uint8)).shape == (0, 3)
    assert cached_array(tmp_path, "key", never).shape == (0, 3)


def test_the_array_is_memory_mapped_and_read_only(tmp_path: Path) -> None:
    array = cached_array(tmp_path, "key", ARRAY.copy)
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_tensor_shares_the_memory_without_a_warning(tmp_path: Path) -> None:
    array = cached_array(tmp_path, "key", ARRAY.copy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array)
    assert tensor.data_ptr() == array.ctypes.data


def test_a_stray_write_to_the_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    as_tensor(cached_array(tmp_path, "key", ARRAY.copy)).zero_()
    np.testing.assert_array_equal(cached_array(tmp_path, "key", never), ARRAY)


DAMAGE = {
    "empty": lambda content: b"",
    "header cut short": lambda content: content[:20],
    "last byte missing": lambda content: content[:-1],
    "bytes too many": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "another format": lambda content: b"PK\x03\x04" + content,
    "header garbled": lambda content: content.replace(b"'shape'", b"'sha,e("),
    "shape too large": lambda content: content.replace(b"(2, 3, 4)", b"(2, 3, 9)"),
    "Python objects": lambda content: content.replace(b"'|u1'", b"'|O' "),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_built_again(tmp_path: Path, damage, caplog) -> None:
    cached_array(tmp_path, "key", ARRAY.copy)
    path = tmp_path / "key.npy"
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    np.testing.assert_array_equal(cached_array(tmp_path, "key", ARRAY.copy), ARRAY)
    assert "is damaged" in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("stage", ["write", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path, monkeypatch, stage) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if stage == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError, match=r"cannot write 0 MB .* no space left on the disk") as error:
        cached_array(tmp_path, "key", ARRAY.copy)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exception", [UserError("bad frame"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_no_file_and_no_lock(tmp_path: Path, exception) -> None:
    def build() -> np.ndarray:
        raise exception

    with pytest.raises(type(exception)):
        cached_array(tmp_path, "key", build)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(cached_array(tmp_path, "key", ARRAY.copy), ARRAY)


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot (read|write).*file"):
        cached_array(tmp_path / "file" / "cache", "key", never)


def refused(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("locks", ["no fcntl", "refused by the disk"])
def test_it_works_where_there_are_no_locks(tmp_path: Path, monkeypatch, locks) -> None:
    if locks == "no fcntl":
        monkeypatch.setattr(cache, "fcntl", None)
    else:
        monkeypatch.setattr(cache.fcntl, "flock", refused)
    np.testing.assert_array_equal(cached_array(tmp_path, "key", ARRAY.copy), ARRAY)
    assert [path.name for path in tmp_path.iterdir()] == ["key.npy"]


def ask(folder: Path, builds: Path, barrier, results) -> None:
    def build() -> np.ndarray:
        (builds / str(os.getpid())).touch()
        time.sleep(0.3)  # long enough for the others to arrive meanwhile
        return ARRAY

    barrier.wait()
    results.put(int(cached_array(folder, "key", build).sum()))


def test_three_processes_at_once_build_once_and_all_get_the_array(tmp_path: Path) -> None:
    builds = tmp_path / "builds"
    builds.mkdir()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (tmp_path / "cache", builds, barrier, results)
    processes = [context.Process(target=ask, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [results.get(timeout=5) for _ in processes] == [int(ARRAY.sum())] * 3
    assert len(list(builds.iterdir())) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["key.npy"]
