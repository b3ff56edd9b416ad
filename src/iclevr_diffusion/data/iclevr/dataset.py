"""The i-CLEVR package as distributed by the course: read, checked, cached as uint8."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from iclevr_diffusion.data.cache import as_tensor, cached_array
from iclevr_diffusion.data.conditions import TEST_LISTS, read_conditions
from iclevr_diffusion.data.iclevr.decode import decode_all, find_damaged
from iclevr_diffusion.data.iclevr.index import Listing, read_listing
from iclevr_diffusion.data.iclevr.locate import ARCHIVES, IMAGES, JSON_NAMES, Package, locate
from iclevr_diffusion.data.iclevr.problems import Problems, summary
from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet
from iclevr_diffusion.data.poses import VERSION, find_poses
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.utils.checks import check_range
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json

_TRAIN, _OBJECTS = "train.json", "objects.json"
_HOW_TO = (
    "expected the course's i-CLEVR package: iclevr/*.png with train.json, test.json and "
    "new_test.json; get it from the course, or use data=synthetic"
)

log = logging.getLogger(__name__)


class ICLEVR:
    """The course's frames and labels, found in ``root`` by :func:`locate`.

    The frames are decoded and resized once, and cached as one uint8 array. Changed, added and
    removed frames are detected by name, size and modification time.

    Args:
        root: Folder with the images, ``train.json``, ``test.json``, ``new_test.json`` and,
            optionally, ``objects.json``; or a folder above these.
        image_size: H = W of the frames, in pixels.
        cache: Folder for the decoded frames.

    Raises:
        ValueError: ``image_size`` is out of range.
    """

    def __init__(
        self, root: str | Path, image_size: int = 64, cache: str | Path = "outputs/cache"
    ) -> None:
        check_range("image_size", image_size, 1, 1024)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.cache = Path(cache).expanduser()
        self._package = Package()
        self._listing: Listing | None = None

    def prepare_data(self) -> None:
        """Check everything, and fill the cache. Writes nothing if a check fails.

        Raises:
            UserError: One line with every kind of problem, its count and the first names.
        """
        self._images(self._known())

    def load_frames(self) -> Frames:
        """Return the frames, sorted by file name; see :class:`Frames` for shapes.

        Raises:
            UserError: As :meth:`prepare_data`; another process may have called that.
        """
        listing = self._known()
        return Frames(
            images=as_tensor(self._images(listing)),
            labels=listing.labels(),
            sequences=listing.sequences(),
            names=listing.names,
        )

    def find_poses(self, frames: Frames, positions: Tensor) -> Tensor:
        """Return the poses of the objects, (N, L, 3), from the cache."""

        def build() -> npt.NDArray[Any]:
            found = find_poses(frames.images, frames.labels, frames.sequences, positions)
            return found.numpy()

        listing = self._known()  # whose key does not identify the labels
        key = f"{listing.key(self.image_size)}-poses{VERSION}-{listing.fingerprint()}"
        return as_tensor(cached_array(self.cache, key, build))

    def sequences(self) -> Tensor:
        return self._known().sequences()

    def frame_labels(self) -> Tensor:
        return self._known().labels()

    def conditions(self) -> dict[str, list[LabelSet]]:
        """Return the lists of ``test.json`` and ``new_test.json``, as ``test`` and ``new_test``.

        Raises:
            UserError: As :func:`read_conditions`.
        """
        self._known()
        return {name: read_conditions(self._package.json[f"{name}.json"]) for name in TEST_LISTS}

    def description(self) -> dict[str, Any]:
        return {"source": "iclevr"}

    def identity(self) -> dict[str, Any]:
        listing = self._known()
        return {
            "source": "iclevr",
            "image_size": self.image_size,
            "frames": len(listing.names),
            "labels": listing.fingerprint(),
        }

    def _known(self) -> Listing:
        """Return the content of the folder when it was checked: at the first call."""
        if self._listing is None:
            self._listing = self._check()
        return self._listing

    def _check(self) -> Listing:
        """Check everything that can be checked without opening the frames.

        If something is wrong, the frames are checked, too, so that one message reports everything.
        """
        if not self.root.is_dir():
            packed = self.root.is_file() and self.root.name.lower().endswith(ARCHIVES)
            what = " is still packed: unpack it" if packed else " is not a folder"
            raise UserError(f"no i-CLEVR data: {self.root}{what}; {_HOW_TO}")
        problems = Problems()
        package = self._package = locate(self.root)
        missing = [] if package.images else [IMAGES]
        missing += [n for n in JSON_NAMES if n not in package.json and n != _OBJECTS]
        for name in missing:
            problems.add("missing", name)
        listing = Listing()
        if package.images and _TRAIN in package.json:
            listing = read_listing(package.images, package.json[_TRAIN], problems)
        self._check_lists(problems)
        if problems:
            problems.update(find_damaged(self._paths(listing)))
            raise self._error(problems, self._hint(missing, listing))
        if listing.unlabelled:
            log.warning("images without labels are ignored: %s", summary(listing.unlabelled))
        return listing

    def _hint(self, missing: list[str], listing: Listing) -> str:
        """Say what was found instead of missing parts, and what to do."""
        if not missing:
            return "" if listing.states else f"; {_HOW_TO}"
        archive = self._package.archive
        packed = f"; unpack {archive} first" if archive else ""
        return f"; found: {self._package.found(self.root)}{packed}; {_HOW_TO}"

    def _check_lists(self, problems: Problems) -> None:
        """Check the condition lists, and the labels' order in objects.json if there is one."""
        found = self._package.json
        for name in TEST_LISTS:
            if f"{name}.json" in found:
                with problems.collected():
                    read_conditions(found[f"{name}.json"])
        if _OBJECTS in found:
            objects = found[_OBJECTS]
            with problems.collected():
                if read_json(objects) != ICLEVR_LABELS.index:
                    problems.add(f"{objects}: not the 24 labels of i-CLEVR in their order")

    def _images(self, listing: Listing) -> npt.NDArray[np.uint8]:
        """All frames, uint8, (N, 3, H, W), memory-mapped from the cache."""

        def build() -> npt.NDArray[np.uint8]:
            images, damaged = decode_all(self._paths(listing), self.image_size)
            if damaged:
                problems = Problems()
                problems.update(damaged)
                raise self._error(problems)
            return images

        return cached_array(self.cache, listing.key(self.image_size), build)

    def _paths(self, listing: Listing) -> list[Path]:
        if self._package.images is None:
            return []
        return [self._package.images / listing.file(name) for name in listing.names]

    def _error(self, problems: Problems, hint: str = "") -> UserError:
        return UserError(f"cannot use the i-CLEVR data in {self.root}: {problems}{hint}")
