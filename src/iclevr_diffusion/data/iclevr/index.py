"""Which frames there are: ``train.json`` held against the files of the folder."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data import labels
from iclevr_diffusion.data.iclevr.locate import IMAGE_SUFFIXES
from iclevr_diffusion.data.iclevr.problems import Problems
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json

_READER_VERSION = 1  # raise it when the same files would give other arrays


@dataclass
class Listing:
    """The usable frames, in the order of their names.

    label_sets: file name → its labels.
    states: file name → (size in bytes, time of change in ns), for the cache's key.
    unlabelled: images in the folder that train.json does not name.
    spelled: file name in train.json → that on the disk, where these differ in case.
    """

    label_sets: dict[str, LabelSet] = field(default_factory=dict)
    states: dict[str, tuple[int, int]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    spelled: dict[str, str] = field(default_factory=dict)

    def file(self, name: str) -> str:
        """The name on the disk of a file in train.json."""
        return self.spelled.get(name, name)

    def fingerprint(self) -> str:
        """A short hash of the names and labels, whatever folder or disk they lie on."""
        content = repr(sorted(self.label_sets.items())).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def names(self) -> list[str]:
        return list(self.label_sets)

    def key(self, image_size: int) -> str:
        """A file name for the decoded frames: another one if a frame is added, gone or changed."""
        digest = hashlib.sha256(f"{_READER_VERSION} {image_size}".encode())
        for name in self.label_sets:
            size, changed = self.states[name]
            digest.update(f"\0{name}\0{size} {changed}".encode("utf-8", "surrogatepass"))
        return f"iclevr-{image_size}-{digest.hexdigest()[:16]}"

    def labels(self) -> Tensor:
        """Multi-hot labels, float32, (N, L)."""
        rows, columns = [], []
        for row, names in enumerate(self.label_sets.values()):
            rows += [row] * len(names)
            columns += [labels.INDEX[name] for name in names]
        vectors = torch.zeros(len(self.label_sets), labels.NUM_LABELS)
        vectors[rows, columns] = 1.0
        return vectors

    def sequences(self) -> Tensor:
        """Sequence numbers, int64, (N,), from 0 in the order of the names.

        ``CLEVR_train_002066_0.png`` and ``CLEVR_train_002066_1.png`` are one sequence; a file whose
        name does not end in ``<number>_<number>`` is one of its own.
        """
        numbers: dict[str, int] = {}
        return torch.tensor(
            [numbers.setdefault(_sequence_of(name), len(numbers)) for name in self.label_sets],
            dtype=torch.int64,
        )


def read_listing(folder: Path, train_json: Path, problems: Problems) -> Listing:
    """Hold ``train.json`` against the files in ``folder``, and note what is wrong in ``problems``.

    Reads the folder's list of files, not the files. Frames with wrong labels are listed, too.
    """
    listing = Listing()
    entries: dict[str, Any] = {}
    with problems.noting():
        listing.states = _scan(folder)
        entries = _read_entries(train_json)
        others = listing.states.keys() - entries.keys()
        listing.spelled = _in_other_case(entries.keys() - listing.states.keys(), others)
        for name, file in listing.spelled.items():
            listing.states[name] = listing.states[file]
        others -= set(listing.spelled.values())
        listing.unlabelled = sorted(filter(_is_image, others))
    for name in sorted(entries):
        label_set = _checked_labels(name, entries[name], problems)
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            problems.add("file name that is not a plain name in iclevr/", name)
        elif name in listing.states:
            listing.label_sets[name] = label_set
        else:
            problems.add("file missing in iclevr/", name)
    return listing


def _read_entries(train_json: Path) -> dict[str, Any]:
    entries = read_json(train_json)
    if not isinstance(entries, dict):
        raise UserError(f'{train_json}: expected an object, such as {{"a.png": ["red cube"]}}')
    if not entries:
        raise UserError(f"{train_json}: names no file")
    return entries


def _in_other_case(names: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Which file each name stands for that no file has but for upper and lower case."""
    by_lower: dict[str, list[str]] = {}
    for file in files:
        by_lower.setdefault(file.lower(), []).append(file)
    found = {name: by_lower.get(name.lower(), []) for name in names}
    return {name: files[0] for name, files in found.items() if len(files) == 1}


def _scan(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file; links are followed, dangling ones left out.

    A link may lead out of the folder: who can put one there can put the file there as well. What
    train.json says, on the other hand, may be a stranger's, so its names have to be plain ones.
    """
    try:
        with os.scandir(folder) as files:
            stats = {file.name: file.stat() for file in files if file.is_file()}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _checked_labels(name: str, value: Any, problems: Problems) -> LabelSet:
    """The labels of one entry of train.json; those that are wrong are noted and left out."""
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        problems.add("entry in train.json that is no list of labels", name)
        return ()
    if not value:
        problems.add("empty list of labels", name)
    known = []
    for label in value:
        # The short way spares 36,018 normalizations at every start.
        canonical = label if label in labels.INDEX else labels.find(label)
        if canonical is None:
            problems.add("unknown label", f"{name}: {label[:40]}")
        else:
            known.append(canonical)
    if len(set(known)) < len(known):
        problems.add("same label twice", name)
    return tuple(known)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _sequence_of(name: str) -> str:
    match = re.fullmatch(r"(.*\d)_\d+\.\w+", name, flags=re.DOTALL)
    return match[1] if match else f"/{name}"
