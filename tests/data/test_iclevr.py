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

from iclevr_diffusion.data import labels
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
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
    write_json(root / "objects.json", labels.INDEX)
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
    assert [labels.decode(row) for row in frames.labels] == [
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
    assert labels.decode(ICLEVR(root, 64, cache).load_frames().labels[0]) == ("red cube",)


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


def test_images_without_labels_are_left_out_with_a_warning(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("extra.png", "more.JPG", "._own.png", "Thumbs.db"):
        (root / "iclevr" / name).touch()
    source = ICLEVR(root, 64, cache)
    with caplog.at_level(logging.WARNING):
        source.prepare_data()
    assert "images without labels are ignored: 2 (extra.png, more.JPG)" in caplog.text
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
    assert labels.decode(frames.labels[0]) == ("green cube",)
    assert len(files_in(cache)) == 1


def test_a_cached_set_still_refuses_a_broken_list(root: Path, cache: Path) -> None:
    ICLEVR(root, 64, cache).prepare_data()
    (root / "test.json").write_text("[")
    with pytest.raises(UserError, match=r"test\.json: not valid JSON"):
        ICLEVR(root, 64, cache).prepare_data()


# What is refused: how to break the package, and the phrase that says so.


def frame(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "iclevr" / FIRST
        path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return change


def text(file: str, content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda root: (root / file).write_bytes(raw) and None


def entry(name: str, value: Any) -> Callable[[Path], None]:
    return lambda root: write_json(root / "train.json", TRAIN | {name: value})


def without(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def flip(content: bytes) -> bytes:
    """The content with one bit of the pixels' data turned over."""
    place = content.index(b"IDAT") + 4000
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def png_without_pixels(width: int, height: int) -> bytes:
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    chunks = (b"\0\0\0\r" + header, b"\0\0\0\0IDAT", b"\0\0\0\0IEND")
    sums = (zlib.crc32(chunk[4:]).to_bytes(4, "big") for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(a + b for a, b in zip(chunks, sums, strict=True))


def sixteen_bit(root: Path) -> None:
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(root / "iclevr" / FIRST)


def jpeg_cut_short(root: Path) -> None:
    Image.fromarray(pixels(FIRST)).save(root / "iclevr" / FIRST, format="JPEG")
    frame(lambda content: content[: len(content) // 2])(root)


def gif(root: Path) -> None:
    Image.fromarray(pixels(FIRST)).save(root / "iclevr" / FIRST, format="GIF")


def dangling_link(root: Path) -> None:
    without(f"iclevr/{FIRST}")(root)
    (root / "iclevr" / FIRST).symlink_to("nowhere.png")


def folder_as_frame(root: Path) -> None:
    without(f"iclevr/{FIRST}")(root)
    (root / "iclevr" / FIRST).mkdir()


def empty_folder(root: Path) -> None:
    for path in (root / "iclevr").iterdir():
        path.unlink()


def file_as_folder(root: Path) -> None:
    without("iclevr")(root)
    (root / "iclevr").touch()


def swapped_objects(root: Path) -> None:
    write_json(root / "objects.json", labels.INDEX | {"gray cube": 1, "red cube": 0})


ONE = f": 1 ({FIRST})"
PLAIN = "file name that is not a plain name in iclevr/: 1 "
NO_LIST = "entry in train.json that is not a list of labels"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "frame missing": (without(f"iclevr/{FIRST}"), "file missing in iclevr/" + ONE),
    "frame a dangling link": (dangling_link, "file missing in iclevr/" + ONE),
    "frame a folder": (folder_as_frame, "file missing in iclevr/" + ONE),
    "frame empty": (frame(b""), "empty file" + ONE),
    "frame cut in its header": (frame(lambda c: c[:20]), "damaged or truncated image" + ONE),
    "frame cut in half": (frame(lambda c: c[: len(c) // 2]), "damaged or truncated image" + ONE),
    "frame's last bytes cut": (frame(lambda c: c[:-16]), "damaged or truncated image" + ONE),
    "frame with a flipped bit": (frame(flip), "damaged or truncated image" + ONE),
    "frame of zeros": (frame(bytes(5000)), "not a PNG or JPEG image" + ONE),
    "frame a web page": (frame(b"<html>404</html>"), "not a PNG or JPEG image" + ONE),
    "frame a GIF": (gif, "not a PNG or JPEG image" + ONE),
    "frame a JPEG cut short": (jpeg_cut_short, "damaged or truncated image" + ONE),
    "frame wide": (frame(png_without_pixels(4097, 8)), "image larger than 4096x4096 pixels" + ONE),
    "frame a bomb": (
        frame(png_without_pixels(65_000, 65_000)),
        "image larger than 4096x4096 pixels" + ONE,
    ),
    "frame with 16 bits": (sixteen_bit, "image that is not 8-bit color or gray" + ONE),
    "name leaves the folder": (entry("../x.png", ["red cube"]), PLAIN + "(../x.png)"),
    "name absolute": (entry("/etc/passwd", ["red cube"]), PLAIN + "(/etc/passwd)"),
    "name with a backslash": (entry("..\\x.png", ["red cube"]), PLAIN + "(..\\\\x.png)"),
    "name with a NUL": (entry("x\0.png", ["red cube"]), PLAIN + "(x\\x00.png)"),
    "name empty": (entry("", ["red cube"]), PLAIN + "()"),
    "name with a line break": (
        entry("a\nb.png", ["red cube"]),
        "missing in iclevr/: 1 (a\\nb.png)",
    ),
    "label unknown": (entry(FIRST, ["purpel cube"]), f"unknown label: 1 ({FIRST}: purpel cube)"),
    "labels empty": (entry(FIRST, []), "empty list of labels" + ONE),
    "label doubled": (entry(FIRST, ["red cube", "Red Cubes"]), "same label twice" + ONE),
    "labels a string": (entry(FIRST, "red cube"), NO_LIST + ONE),
    "labels numbers": (entry(FIRST, [1]), NO_LIST + ONE),
    "labels null": (entry(FIRST, None), NO_LIST + ONE),
    "train.json missing": (without("train.json"), "missing: 1 (train.json)"),
    "train.json empty": (text("train.json", ""), "train.json: the file is empty"),
    "train.json cut": (text("train.json", '{"a.png": ["red'), "train.json: not valid JSON: Unt"),
    "train.json a list": (text("train.json", "[]"), "train.json: expected an object"),
    "train.json without entries": (text("train.json", "{}"), "train.json: lists no file"),
    "train.json not UTF-8": (
        text("train.json", b"\xff\xfe{"),
        "train.json: not UTF-8 text (byte 0)",
    ),
    "train.json with a file twice": (
        text("train.json", '{"own.png": ["red cube"], "own.png": ["gray cube"]}'),
        "'own.png' is listed twice",
    ),
    "test.json missing": (without("test.json"), "missing: 1 (test.json)"),
    "new_test.json missing": (without("new_test.json"), "missing: 1 (new_test.json)"),
    "test.json malformed": (text("test.json", "[["), "test.json: not valid JSON"),
    "new_test.json wrong": (text("new_test.json", '["red cube"]'), "new_test.json: entry 1: expec"),
    "objects.json other order": (swapped_objects, "objects.json: not the 24 labels of i-CLEVR"),
    "objects.json malformed": (text("objects.json", "{"), "objects.json: not valid JSON"),
    "iclevr/ missing": (without("iclevr"), "missing: 1 (iclevr)"),
    "iclevr/ empty": (empty_folder, "file missing in iclevr/: 4"),
    "iclevr/ a file": (file_as_folder, "iclevr: cannot be listed: Not a directory"),
    "nothing there": (without("."), "is not a folder; expected the course's i-CLEVR package"),
}


@pytest.mark.parametrize(("change", "phrase"), BAD.values(), ids=BAD.keys())
def test_a_broken_package_is_refused_in_one_line(
    root: Path, cache: Path, change: Callable[[Path], None], phrase: str
) -> None:
    change(root)
    assert phrase in message_of_bad(root, cache)


def test_frames_refuses_as_prepare_does(root: Path, cache: Path) -> None:
    frame(flip)(root)
    with pytest.raises(UserError, match="damaged or truncated"):
        ICLEVR(root, 64, cache).load_frames()
    assert files_in(cache) == []


def test_all_kinds_of_problems_come_in_one_message(root: Path, cache: Path) -> None:
    frame(b"")(root)
    without("test.json")(root)
    swapped_objects(root)
    gone = {f"gone{n}.png": ["red cube"] for n in range(5)}
    write_json(root / "train.json", TRAIN | gone | {"own.png": ["pink cube"]})
    message = message_of_bad(root, cache)
    for phrase in (
        f"cannot use the i-CLEVR data in {root}: ",
        "missing: 1 (test.json)",
        "file missing in iclevr/: 5 (gone0.png, gone1.png, gone2.png, ...)",
        "unknown label: 1 (own.png: pink cube)",
        "objects.json: not the 24 labels",
        "empty file" + ONE,
    ):
        assert phrase in message


def test_every_damaged_frame_is_counted(root: Path, cache: Path) -> None:
    for name in TRAIN:
        (root / "iclevr" / name).write_bytes(b"\x89PNG broken")
    assert "damaged or truncated image: 4 (CLEVR" in message_of_bad(root, cache)


@pytest.mark.parametrize("missing", ["iclevr", "."])
def test_a_missing_package_comes_with_how_to_get_one(root: Path, cache: Path, missing: str) -> None:
    without(missing)(root)
    message = message_of_bad(root, cache)
    assert "iclevr/*.png with train.json, test.json, new_test.json, objects.json" in message
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
