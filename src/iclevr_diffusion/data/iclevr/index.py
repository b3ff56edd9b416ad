"""The frames of the package: ``train.json`` checked against the files in the folder."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclevr_diffusion.data.iclevr.locate import IMAGE_SUFFIXES
from iclevr_diffusion.data.iclevr.problems import Problems
from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS, LabelSet
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json

_FORMAT_VERSION = 1  # increase it when the same files give other arrays


@dataclass
class Listing:
    """The usable frames, in the order of their names.

    Attributes:
        label_sets: File name → labels.
        states: File name → (size in bytes, modification time in ns), for the key of the cache.
        unlabelled: Images in the folder that train.json does not list.
        spelled: File name in train.json → on disk, if these differ in case.
    """

    label_sets: dict[str, LabelSet] = field(default_factory=dict)
    states: dict[str, tuple[int, int]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)
    spelled: dict[str, str] = field(default_factory=dict)

    def file(self, name: str) -> str:
        """Return the name on disk of a file in train.json."""
        return self.spelled.get(name, name)

    def fingerprint(self) -> str:
        """Return a short hash of names and labels, independent of the folder."""
        content = repr(sorted(self.label_sets.items())).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @property
    def names(self) -> list[str]:
        return list(self.label_sets)

    def key(self, image_size: int) -> str:
        """Return a file name for the decoded frames; it changes if any frame does."""
        digest = hashlib.sha256(f"{_FORMAT_VERSION} {image_size}".encode())
        for name in self.label_sets:
            size, changed = self.states[name]
            digest.update(f"\0{name}\0{size} {changed}".encode("utf-8", "surrogatepass"))
        return f"iclevr-{image_size}-{digest.hexdigest()[:16]}"

    def labels(self) -> Tensor:
        """Return multi-hot labels, float32, (N, L)."""
        rows, columns = [], []
        for row, names in enumerate(self.label_sets.values()):
            rows += [row] * len(names)
            columns += [ICLEVR_LABELS.index[name] for name in names]
        vectors = torch.zeros(len(self.label_sets), NUM_LABELS)
        vectors[rows, columns] = 1.0
        return vectors

    def sequences(self) -> Tensor:
        """Return sequence numbers, int64, (N,), from 0 in the order of the names.

        ``CLEVR_train_002066_0.png`` and ``CLEVR_train_002066_1.png`` are one sequence; a file whose
        name does not end in ``<number>_<number>`` is a sequence by itself.
        """
        numbers: dict[str, int] = {}
        return torch.tensor(
            [numbers.setdefault(_sequence_of(name), len(numbers)) for name in self.label_sets],
            dtype=torch.int64,
        )


def read_listing(folder: Path, train_json: Path, problems: Problems) -> Listing:
    """Check ``train.json`` against the files in ``folder``, and add what is wrong to ``problems``.

    The folder is listed, but no image is opened. Frames with wrong labels are listed, too.
    """
    listing = Listing()
    entries: dict[str, Any] = {}
    with problems.collected():
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
        raise UserError(f"{train_json}: lists no file")
    return entries


def _in_other_case(names: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Map names without a file to the only file whose name differs only in case."""
    by_lower: dict[str, list[str]] = {}
    for file in files:
        by_lower.setdefault(file.lower(), []).append(file)
    found = {name: by_lower.get(name.lower(), []) for name in names}
    return {name: files[0] for name, files in found.items() if len(files) == 1}


def _scan(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file; links are followed, dangling ones omitted.

    A link may lead out of the folder: whoever can create it there can put a file there, too. The
    names in train.json may come from somebody else, so they must be plain names.
    """
    try:
        with os.scandir(folder) as files:
            stats = {file.name: file.stat() for file in files if file.is_file()}
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _checked_labels(name: str, value: Any, problems: Problems) -> LabelSet:
    """Return the labels of one entry of train.json; wrong ones are reported and omitted."""
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        problems.add("entry in train.json that is not a list of labels", name)
        return ()
    if not value:
        problems.add("empty list of labels", name)
    known = []
    for label in value:
        # The fast path: 36,018 labels are checked at every start.
        canonical = label if label in ICLEVR_LABELS.index else ICLEVR_LABELS.find(label)
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
