"""The course's package is found however its archive was unpacked."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.iclevr.locate import locate
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.utils.errors import UserError

TRAIN = {"CLEVR_train_000000_0.png": ["red cube"], "CLEVR_train_000000_1.png": ["gray sphere"]}
CONTENTS = {
    "train.json": TRAIN,
    "test.json": [["red cube"]],
    "new_test.json": [["blue sphere"]],
    "objects.json": ICLEVR_LABELS.index,
}


def unpack(images: Path, lists: Path) -> None:
    """The package with its images in one folder and its JSON files in another."""
    for folder in (images, lists):
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(TRAIN):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(images / name)
    for name, content in CONTENTS.items():
        (lists / name).write_text(json.dumps(content))


def read(root: Path, cache: Path) -> list[str]:
    source = ICLEVR(root, 8, cache)
    source.sequences()
    assert source.conditions() == {"test": [("red cube",)], "new_test": [("blue sphere",)]}
    frames = source.load_frames()
    assert frames.images[:, 0, 0, 0].tolist() == [0, 1]
    return frames.names


def message(root: Path) -> str:
    """The one line with which a package is refused."""
    with pytest.raises(UserError) as error:
        ICLEVR(root, 8, root / "cache").sequences()
    assert "\n" not in str(error.value)
    return str(error.value)


LAYOUTS = [
    # images, JSON files, data.root
    ("iclevr", ".", "."),
    ("iclevr", "file", "."),
    ("iclevr", "file", "iclevr"),
    ("iclevr", "file", "file"),
    ("iclevr/iclevr", ".", "."),
    ("iclevr/iclevr", "iclevr", "."),
    ("iclevr/iclevr", "file", "."),
    ("iclevr/iclevr", "file", "iclevr"),
    ("iclevr/iclevr", "file", "iclevr/iclevr"),
    ("iclevr/iclevr", "file", "file"),
    ("flat", "flat", "flat"),
    ("flat", "flat", "."),
    ("ICLEVR", "File", "."),
    ("lab6/dataset/iclevr", "lab6/file", "."),
    ("lab6/dataset/iclevr", "lab6/dataset", "lab6/dataset/iclevr"),
    ("content/drive/MyDrive/lab6/iclevr", "content/drive/MyDrive/lab6/file", "."),
    ("some images/資料", "the lists", "."),
]


@pytest.mark.parametrize(("images", "lists", "root"), LAYOUTS)
def test_package_is_found(images, lists, root, tmp_path):
    package = tmp_path / "package"
    unpack(package / images, package / lists)
    assert read(package / root, tmp_path / "cache") == list(TRAIN)


def test_what_other_systems_leave_is_passed_over(tmp_path):
    root = tmp_path / "package"
    unpack(root / "iclevr", root / "file")
    for junk in ("__MACOSX/iclevr", "__MACOSX/file", ".Trash/iclevr"):
        (root / junk).mkdir(parents=True)
    for junk in (
        "__MACOSX/iclevr/._CLEVR_train_000000_0.png",
        "__MACOSX/file/train.json",
        ".Trash/iclevr/CLEVR_train_000000_0.png",
        "iclevr/._CLEVR_train_000000_0.png",
        "iclevr/.DS_Store",
        "iclevr/Thumbs.db",
        "file/._train.json",
        ".DS_Store",
        "iclevr.zip",
    ):
        (root / junk).write_bytes(b"\0")
    (root / "docs").mkdir()
    (root / "docs" / "figure.png").write_bytes(b"\0")
    assert read(root, tmp_path / "cache") == list(TRAIN)


def test_upper_and_lower_case_and_windows_files_do_not_matter(tmp_path):
    root = tmp_path / "package"
    unpack(root / "ICLEVR", root)
    for path in (root / "ICLEVR").iterdir():
        path.rename(path.with_suffix(".PNG"))
    for name, content in CONTENTS.items():
        (root / name).unlink()
        text = json.dumps(content, indent=1).replace("\n", "\r\n")
        (root / name.upper()).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(root, tmp_path / "cache") == list(TRAIN)


def test_layout_of_the_documentation_counts_before_copies_below_it(tmp_path):
    root = tmp_path / "package"
    unpack(root / "iclevr", root)
    unpack(root / "copy" / "iclevr", root / "copy")
    assert locate(root).images == root / "iclevr"


def test_folder_that_links_to_itself_is_looked_through_once(tmp_path):
    root = tmp_path / "package"
    unpack(root / "iclevr", root / "file")
    (root / "file" / "again").symlink_to(root)
    (root / "link").symlink_to("iclevr")
    assert read(root, tmp_path / "cache") == list(TRAIN)


def test_several_packages_are_listed(tmp_path):
    unpack(tmp_path / "a" / "iclevr", tmp_path / "a" / "file")
    unpack(tmp_path / "b" / "iclevr", tmp_path / "b" / "file")
    (tmp_path / "b" / "file" / "train.json").write_text('{"other.png": ["red cube"]}')
    line = message(tmp_path)
    assert "train.json: a/file/train.json, b/file/train.json; set data.root to the" in line
    (tmp_path / "b" / "file" / "train.json").unlink()
    assert "folders of images: a/iclevr, b/iclevr; set data.root" in message(tmp_path)


@pytest.mark.parametrize("name", ["iclevr.zip", "iclevr.tar.gz", "ICLEVR.7z"])
def test_archive_that_is_still_packed_is_named(tmp_path, name):
    root = tmp_path / "package"
    unpack(root / "iclevr", root / "file")
    (root / "iclevr").rename(tmp_path / "elsewhere")
    (root / name).touch()
    assert f"; unpack {root / name} first; " in message(root)
    assert f"{name} is still packed: unpack it" in message(root / name)


def test_sibling_of_another_name_is_not_taken(tmp_path):
    unpack(tmp_path / "a" / "iclevr", tmp_path / "a")
    unpack(tmp_path / "b" / "iclevr", tmp_path / "b")
    for name in CONTENTS:
        (tmp_path / "b" / name).unlink()
    assert "missing: 3 (train.json, " in message(tmp_path / "b")


def test_too_many_folders_end_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("iclevr_diffusion.data.iclevr.locate._MAX_FOLDERS", 20)
    for number in range(30):
        (tmp_path / str(number)).mkdir()
    assert "too many folders to search; set data.root" in message(tmp_path)


def test_no_image_is_asked_for_before_its_turn(tmp_path, monkeypatch):
    """The folder has 18,009 images: to find it, only its list of names is read."""
    root = tmp_path / "package"
    unpack(root / "iclevr" / "iclevr", root / "file")
    for number in range(50):
        (root / "iclevr" / "iclevr" / f"x{number}.png").touch()
    asked: list[str] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: asked.append(path) or stat(path, **more))
    locate(root)
    assert sum(str(path).endswith(".png") for path in asked) <= 3
