import io
import json
import logging
import lzma
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iclevr_diffusion.data.iclevr import dataset
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.utils.errors import UserError

TRAIN = {
    "CLEVR_train_000007_1.png": ["red cube", "blue sphere"],
    "CLEVR_train_000007_0.png": ["red cube"],
    "CLEVR_train_000012_0.png": ["yellow cylinder"],
    "own.png": ["gray sphere"],
}
FIRST = "CLEVR_train_000007_0.png"


def pixels(name: str, size: int = 64) -> np.ndarray:
    """Noise that differs from file to file, (size, size, 3)."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(
        0, 256, (size, size, 3), dtype=np.uint8
    )


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tiny intact package in the course's layout."""
    root = tmp_path / "data"
    (root / "iclevr").mkdir(parents=True)
    for name in TRAIN:
        Image.fromarray(pixels(name)).save(root / "iclevr" / name)
    write_json(root / "train.json", TRAIN)
    write_json(root / "test.json", [["red cube"]])
    write_json(root / "new_test.json", [["red cube", "blue sphere"], ["gray cube"]])
    write_json(root / "objects.json", ICLEVR_LABELS.index)
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def files_in(cache: Path) -> list[Path]:
    return list(cache.iterdir()) if cache.exists() else []


def message_of_bad(root: Path, cache: Path, image_size: int = 64) -> str:
    """The one line that prepare_data() refuses with, having written nothing."""
    with pytest.raises(UserError) as error:
        ICLEVR(root, image_size, cache).prepare_data()
    assert "\n" not in str(error.value)
    assert files_in(cache) == []
    return str(error.value)


def test_frames_come_in_the_order_of_their_names_with_their_labels(root: Path, cache: Path) -> None:
    source = ICLEVR(root, 64, cache)
    source.prepare_data()
    frames = source.load_frames()
    assert frames.names == sorted(TRAIN)
    assert len(frames) == 4
    assert frames.labels.shape == (4, 24)
    assert [ICLEVR_LABELS.decode(row) for row in frames.labels] == [
        ("red cube",),
        ("red cube", "blue sphere"),
        ("yellow cylinder",),
        ("gray sphere",),
    ]


def test_frames_of_the_asked_size_are_passed_through_untouched(root: Path, cache: Path) -> None:
    frames = ICLEVR(root, 64, cache).load_frames()
    assert frames.images.dtype == torch.uint8
    for image, name in zip(frames.images, frames.names, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels(name))


def test_frames_of_one_sequence_share_a_number_and_other_names_are_alone(
    root: Path, cache: Path
) -> None:
    sequences = ICLEVR(root, 64, cache).load_frames().sequences
    assert sequences.dtype == torch.int64
    assert sequences.tolist() == [0, 0, 1, 2]


def test_conditions_are_the_two_lists(root: Path, cache: Path) -> None:
    assert ICLEVR(root, 64, cache).conditions() == {
        "test": [("red cube",)],
        "new_test": [("red cube", "blue sphere"), ("gray cube",)],
    }


def test_labels_may_be_spelled_freely_and_objects_json_may_be_absent(
    root: Path, cache: Path
) -> None:
    (root / "objects.json").unlink()
    write_json(root / "train.json", {FIRST: [" Red  Cubes "]})
    assert ICLEVR_LABELS.decode(ICLEVR(root, 64, cache).load_frames().labels[0]) == ("red cube",)


def test_larger_frames_are_reduced_without_aliasing(root: Path, cache: Path) -> None:
    stripes = np.zeros((240, 320, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # finer than 64 columns can show: the right answer is even grey
    Image.fromarray(stripes).save(root / "iclevr" / FIRST)
    image = ICLEVR(root, 64, cache).load_frames().images[0].float()
    assert image.shape == (3, 64, 64)
    assert (image - 127.5).abs().max() < 20  # single pixels would be 127.5 off


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "LA"])
def test_other_modes_become_rgb(root: Path, cache: Path, mode: str) -> None:
    image = Image.new("RGB", (64, 64), (255, 255, 255)).convert(mode)
    image.save(root / "iclevr" / FIRST)
    assert (ICLEVR(root, 64, cache).load_frames().images[0] == 255).all()


def test_an_opaque_alpha_channel_changes_nothing(root: Path, cache: Path) -> None:
    Image.fromarray(pixels(FIRST)).convert("RGBA").save(root / "iclevr" / FIRST)
    image = ICLEVR(root, 64, cache).load_frames().images[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels(FIRST))


def test_links_to_frames_are_followed(root: Path, cache: Path, tmp_path: Path) -> None:
    (root / "iclevr" / FIRST).rename(tmp_path / "elsewhere.png")
    (root / "iclevr" / FIRST).symlink_to(tmp_path / "elsewhere.png")
    assert len(ICLEVR(root, 64, cache).load_frames()) == 4


def test_images_without_labels_are_left_out_with_one_warning(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("extra.png", "more.JPG", "._own.png", "Thumbs.db"):
        (root / "iclevr" / name).touch()
    source = ICLEVR(root, 64, cache)
    with caplog.at_level(logging.WARNING):
        source.prepare_data()
        source.prepare_data()
    assert caplog.text.count("images without labels are ignored: 2 (extra.png, more.JPG)") == 1
    assert len(source.load_frames()) == 4


# The cache.


def test_a_second_start_decodes_nothing(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ICLEVR(root, 64, cache).load_frames().images.clone()
    monkeypatch.setattr("iclevr_diffusion.data.iclevr.dataset.decode_all", None)
    assert torch.equal(ICLEVR(root, 64, cache).load_frames().images, expected)
    assert len(files_in(cache)) == 1


def touch_later(root: Path) -> None:
    state = (root / "iclevr" / FIRST).stat()
    os.utime(root / "iclevr" / FIRST, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def replace_frame(root: Path) -> None:
    Image.new("RGB", (64, 64)).save(root / "iclevr" / FIRST)


def drop_entry(root: Path) -> None:
    write_json(root / "train.json", {name: TRAIN[name] for name in list(TRAIN)[1:]})


@pytest.mark.parametrize("change", [touch_later, replace_frame, drop_entry])
def test_a_change_of_the_frames_is_noticed(
    root: Path, cache: Path, change: Callable[[Path], None]
) -> None:
    ICLEVR(root, 64, cache).prepare_data()
    change(root)
    ICLEVR(root, 64, cache).prepare_data()
    assert len(files_in(cache)) == 2


def test_each_image_size_has_its_own_cache_file(root: Path, cache: Path) -> None:
    assert ICLEVR(root, 64, cache).load_frames().images.shape == (4, 3, 64, 64)
    assert ICLEVR(root, 32, cache).load_frames().images.shape == (4, 3, 32, 32)
    assert len(files_in(cache)) == 2


def test_a_corrected_label_needs_no_new_decoding(root: Path, cache: Path) -> None:
    ICLEVR(root, 64, cache).prepare_data()
    write_json(root / "train.json", TRAIN | {FIRST: ["green cube"]})
    frames = ICLEVR(root, 64, cache).load_frames()
    assert ICLEVR_LABELS.decode(frames.labels[0]) == ("green cube",)
    assert len(files_in(cache)) == 1


def test_a_cached_set_still_refuses_a_broken_list(root: Path, cache: Path) -> None:
    ICLEVR(root, 64, cache).prepare_data()
    (root / "test.json").write_text("[")
    with pytest.raises(UserError, match=r"test\.json: not valid JSON"):
        ICLEVR(root, 64, cache).prepare_data()


# What is refused; tests/bad_input_cases.py breaks a package in many more ways.


@pytest.mark.parametrize("kept", [16, -16])
def test_frames_refuses_a_cut_frame_as_prepare_data_does(root: Path, cache: Path, kept: int):
    path = root / "iclevr" / FIRST
    path.write_bytes(path.read_bytes()[:kept])  # PIL decodes a PNG without its last bytes
    assert f"damaged or truncated image: 1 ({FIRST})" in message_of_bad(root, cache)
    with pytest.raises(UserError, match="damaged or truncated"):
        ICLEVR(root, 64, cache).load_frames()
    assert files_in(cache) == []


def test_all_kinds_of_problems_come_in_one_message(root: Path, cache: Path) -> None:
    (root / "iclevr" / FIRST).write_bytes(b"")
    (root / "test.json").unlink()
    write_json(root / "objects.json", ICLEVR_LABELS.index | {"gray cube": 1, "red cube": 0})
    gone = {f"gone{n}.png": ["red cube"] for n in range(5)}
    write_json(root / "train.json", TRAIN | gone | {"own.png": ["pink cube"]})
    message = message_of_bad(root, cache)
    for phrase in (
        f"cannot use the i-CLEVR data in {root}: ",
        "missing: 1 (test.json)",
        "file missing in iclevr/: 5 (gone0.png, gone1.png, gone2.png, ...)",
        "unknown label: 1 (own.png: pink cube)",
        "objects.json: not the 24 labels",
        f"empty file: 1 ({FIRST})",
    ):
        assert phrase in message


def test_every_damaged_frame_is_counted(root: Path, cache: Path) -> None:
    for name in TRAIN:
        (root / "iclevr" / name).write_bytes(b"\x89PNG broken")
    assert "damaged or truncated image: 4 (CLEVR" in message_of_bad(root, cache)


@pytest.mark.parametrize("missing", ["iclevr", "."])
def test_a_missing_package_comes_with_how_to_get_one(root: Path, cache: Path, missing: str) -> None:
    shutil.rmtree(root / missing)
    message = message_of_bad(root, cache)
    assert "iclevr/*.png with train.json, test.json and new_test.json" in message
    assert message.endswith("or use data=synthetic")


@pytest.mark.parametrize("image_size", [0, -64, 5000])
def test_an_image_size_out_of_range_is_refused(root: Path, cache: Path, image_size: int) -> None:
    with pytest.raises(ValueError, match=r"image_size must be in 1\.\.1024"):
        ICLEVR(root, image_size, cache)


# The course's own frames.


def test_frames_as_the_course_hands_them_out_load(
    shared_data: Path, root: Path, cache: Path
) -> None:
    folder = shared_data / "full_size"
    train = json.loads((folder / "labels.json").read_text())
    write_json(root / "train.json", train)
    for name in train:
        shutil.copy(folder / name, root / "iclevr")
    frames = ICLEVR(root, 64, cache).load_frames()
    assert frames.images.shape == (6, 3, 64, 64)
    for image, name in zip(frames.images, frames.names, strict=True):
        with Image.open(folder / name) as original:
            colors = np.asarray(original)[..., :3].mean((0, 1))
        assert image.float().mean((1, 2)).numpy() == pytest.approx(colors, abs=0.5)


@pytest.mark.slow
def test_all_frames_of_the_course_load_and_a_second_start_takes_under_a_second(
    shared_data: Path, tmp_path: Path, cache: Path
) -> None:
    root = tmp_path / "full"
    subprocess.run([sys.executable, shared_data / "unpack.py", root], check=True)
    originals = np.load(io.BytesIO(lzma.decompress((shared_data / "iclevr64.npy.xz").read_bytes())))
    source = ICLEVR(root, 64, cache)
    source.prepare_data()
    frames = source.load_frames()
    assert np.array_equal(
        frames.images.permute(0, 2, 3, 1).numpy(), originals.reshape(-1, 64, 64, 3)
    )
    assert frames.labels.sum() == 36_018
    assert frames.sequences.bincount().tolist() == [3] * 6003

    start = time.process_time()  # the time that other programs take does not count
    again = ICLEVR(root, 64, cache)
    again.prepare_data()
    again.load_frames()
    again.conditions()
    assert time.process_time() - start < 1


def test_poses_are_found_once(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ICLEVR(root, cache=cache)
    frames = source.load_frames()
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    found = source.find_poses(frames, positions)
    assert found.shape == (*frames.labels.shape, 3)
    monkeypatch.setattr(dataset, "find_poses", None)
    again = ICLEVR(root, cache=cache).find_poses(frames, positions)
    torch.testing.assert_close(again, found, equal_nan=True)
