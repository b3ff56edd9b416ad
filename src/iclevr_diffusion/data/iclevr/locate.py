"""Find the files of the course's data set, wherever its archives were unpacked."""

import filecmp
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from iclevr_diffusion.utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGES = "iclevr"  # the folder of the images
LABELS = "file"  # the folder of the JSON files, in the course's archive
JSON_NAMES = ("train.json", "test.json", "new_test.json", "objects.json")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")  # suffixes
_MAX_DEPTH = 6  # folders between data.root and a part
_MAX_FOLDERS = 2000  # that are searched; a home folder has more
_SKIPPED = ("__macosx", "node_modules", "site-packages")


@dataclass
class Package:
    """Paths of the parts of a package; missing parts are omitted.

    Attributes:
        images: Folder of the images, or a file of that name instead.
        json: Name, such as ``train.json``, → path.
        archive: An archive found on the way.
    """

    images: Path | None = None
    json: dict[str, Path] = field(default_factory=dict)
    archive: Path | None = None

    def found(self, root: Path) -> str:
        """Return the parts by their paths relative to ``root``, for a message."""
        parts = [*self.json.values(), *([] if self.images is None else [self.images])]
        return ", ".join(os.path.relpath(part, root) for part in parts) or "none of it"


@dataclass
class _Found:
    """Candidates found by a search, nearest first.

    Attributes:
        json: Name → paths.
        folders: Folders with images.
        named: Folders or files named ``iclevr``.
        archives: Archives, such as ZIP files.
    """

    json: dict[str, list[Path]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    named: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)

    def add(self, other: "_Found") -> None:
        for name, paths in other.json.items():
            self.json.setdefault(name, []).extend(paths)
        self.folders += other.folders
        self.named += other.named
        self.archives += other.archives


def locate(root: Path) -> Package:
    """Find the parts of the package in and below ``root``, or beside it.

    The archive of the images unpacks to ``iclevr/*.png`` or ``iclevr/iclevr/*.png``, that of the
    JSON files to ``file/``, or without a folder. ``root`` may be the folder that has all of them, a
    folder above it, or one of them. Case is ignored.

    Raises:
        UserError: There are several packages, or too many folders.
    """
    seen = _search(root)
    if seen.json and not seen.folders:
        seen.add(_beside(root, json=False))
    elif seen.folders and not seen.json:
        seen.add(_beside(root, json=True))
    package = Package(archive=next(iter(seen.archives), None))
    for name in JSON_NAMES:
        paths = seen.json.get(name, [])
        beside = package.json.get("train.json", root / name).with_name(name)
        near = [path for path in paths if path.parent == beside.parent]
        path = _only(near or paths, name, root)
        if path is not None:
            package.json[name] = path
    package.images = _images(seen, root, package.json.get("train.json"))
    return package


def _images(seen: _Found, root: Path, train: Path | None) -> Path | None:
    """Return the folder of the images that ``train.json`` lists."""
    folders = seen.folders
    if train is not None:
        known = _some_names(train)
        holding = [folder for folder in folders if _holds(folder, known)]
        named = [folder for folder in folders if folder.name.lower() == IMAGES]
        folders = holding or named or ([] if seen.named else folders)
        canonical = [folder for folder in folders if folder.parent == train.parent == root]
        folders = [f for f in canonical if f.name.lower() == IMAGES] or folders
    found = _only(folders, "folders of images", root)
    return found or next(iter(seen.named), None)


def _only(paths: list[Path], what: str, root: Path) -> Path | None:
    """Return the only path; among several files with the same content, the first.

    Raises:
        UserError: There are several.
    """
    if not paths:
        return None
    first, *others = paths
    if all(path.is_file() and filecmp.cmp(first, path, shallow=False) for path in others):
        return first
    named = ", ".join(os.path.relpath(path, root) for path in paths[:4])
    more = ", …" if len(paths) > 4 else ""
    raise UserError(
        f"several candidates for the i-CLEVR data in {root}: {what}: {named}{more}; set data.root"
        " to the folder of one"
    )


def _some_names(train: Path) -> list[str]:
    """Return some file names in ``train.json``, without parsing it: it is checked later."""
    try:
        words = train.read_bytes()[:100_000].decode("utf-8", "replace").split('"')
    except OSError:
        return []
    return list(itertools.islice((w for w in words if w.lower().endswith(IMAGE_SUFFIXES)), 3))


def _holds(folder: Path, names: Iterable[str]) -> bool:
    """Return whether the folder has one of these files; the suffix may be in upper case."""
    plain = [Path(name) for name in names if name == Path(name).name and "\0" not in name]
    paths = [folder / n for name in plain for n in (name, name.with_suffix(name.suffix.upper()))]
    return any(path.exists() for path in paths)


def _search(root: Path) -> _Found:
    """Search ``root`` and the folders below it, level by level.

    Only names are read: a folder of 18,009 images takes a few hundredths of a second.
    """
    seen, level, known = _Found(), [root], {os.path.realpath(root)}
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            below += _look(folder, seen)
        level = [path for path in below if not _is_known(path, known)]
        if len(known) > _MAX_FOLDERS:
            if seen.folders and seen.json:
                break
            raise UserError(
                f"no i-CLEVR data near the top of {root}, which has too many folders to"
                " search; set data.root to the package's own"
            )
    return seen


def _is_known(path: Path, known: set[str]) -> bool:
    """Return whether a folder was searched before, under this or another name."""
    real = os.path.realpath(path)
    before = len(known)
    known.add(real)
    return len(known) == before


def _look(folder: Path, seen: _Found) -> list[Path]:
    """Add what is directly in a folder.

    Returns:
        The folders in it, sorted by name.
    """
    has_images, folders = False, []
    for entry in _entries(folder):
        name = entry.name.lower()
        path = folder / entry.name
        if name.startswith("."):
            continue
        if name.endswith(IMAGE_SUFFIXES):
            has_images = True  # whether it is a file is not checked: that may take a disk access
            continue
        if name in JSON_NAMES:
            seen.json.setdefault(name, []).append(path)
        elif name.endswith(ARCHIVES):
            seen.archives.append(path)
        elif name == IMAGES:
            seen.named.append(path)
        if name not in _SKIPPED and _is_dir(entry):
            folders.append(path)
    if has_images:
        seen.folders.append(folder)
    return sorted(folders)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # not readable or not a folder; other parts can still be found
        return


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _beside(root: Path, json: bool) -> _Found:
    """Find the missing half of a package beside ``root``: the JSON files or the images.

    Only the folders that the archives unpack to are searched, so that the parts of another package
    are not used.
    """
    root = root.absolute()
    for base in (root.parent, root.parent.parent):
        seen = _Found()
        children = {entry.name.lower(): base / entry.name for entry in _entries(base)}
        name = LABELS if json else IMAGES
        folders = [children[name]] if name in children else []
        if json:
            folders.append(base)
        else:
            folders += [folder / IMAGES for folder in folders]
        for folder in folders:
            _look(folder, seen)
        seen = _Found(json=seen.json) if json else _Found(folders=seen.folders)
        if seen.json or seen.folders:
            return seen
    return _Found()
