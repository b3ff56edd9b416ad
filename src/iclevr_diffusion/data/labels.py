"""The 24 labels of i-CLEVR: eight colours times three shapes.

A label set is a tuple of names, such as ``("red cube", "blue sphere")``; its multi-hot vector is a
float32 tensor of shape (L,), L = 24, in the order of the course's ``objects.json``.
"""

import difflib
import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from iclevr_diffusion.utils.errors import UserError

COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")
NAMES = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
INDEX = {name: index for index, name in enumerate(NAMES)}
NUM_LABELS = len(NAMES)

LabelSet = tuple[str, ...]
MAX_NAMED = 2  # of the unknown labels of one set
SEPARATOR = re.compile(r"[,;&+]|\band\b", re.IGNORECASE)
ARTICLE = re.compile(r"^(a|an|the|one|1) ")
SEVERAL = re.compile(
    r"\s*(\d+|two|three|four|five|six|seven|eight|nine|ten|both|several|many|some|few)\s*x?\s+",
    re.IGNORECASE,
)
MEANT = {  # words for the colors and shapes, to find the closest label by
    "ball": "sphere",
    "balls": "sphere",
    "circle": "sphere",
    "orb": "sphere",
    "box": "cube",
    "boxes": "cube",
    "block": "cube",
    "square": "cube",
    "can": "cylinder",
    "tube": "cylinder",
    "pillar": "cylinder",
    "violet": "purple",
    "turquoise": "cyan",
    "teal": "cyan",
    "grey": "gray",
}


def find(name: str) -> str | None:
    """The canonical spelling of one label; None where the name is none of the 24.

    Case, spaces, an article, a plural s, and "grey" are accepted: ``" the Grey  CUBES"`` →
    ``"gray cube"``.
    """
    words = ARTICLE.sub("", " ".join(name.split()).lower())
    plain = re.sub(r"^grey\b", "gray", words).removesuffix("s")
    return plain if plain in INDEX else None


def check(names: Sequence[str]) -> LabelSet:
    """The canonical label set of ``names``, in the order given.

    A name may hold several labels, as in :func:`parse`.

    Raises:
        UserError: no name, unknown names, of which the first two are named, more than one of a
            label, or the same label twice.
    """
    parts = [part for name in names for part in _parts(name)]
    found = {part: find(part) for part in parts}
    unknown = [part for part, label in found.items() if label is None]
    if unknown:
        lines = [_unknown(part) for part in unknown[:MAX_NAMED]]
        if len(unknown) > MAX_NAMED:
            lines.append(f"and {len(unknown) - MAX_NAMED} more unknown labels")
        raise UserError("; ".join(lines))
    labels = tuple(label for part in parts if (label := found[part]))
    if not labels:
        raise UserError("no label given; write for example 'red cube, blue sphere'")
    doubled = [name for name in dict.fromkeys(labels) if labels.count(name) > 1]
    if doubled:
        raise UserError(
            f"label given twice: {', '.join(doubled)}; an image has at most one of each"
        )
    return labels


def _parts(text: str) -> list[str]:
    """The labels in a text, each as it is written there; one that is known as a whole is itself."""
    if text in INDEX:
        return [text]
    return [part for part in SEPARATOR.split(text) if part.strip()] if text.strip() else [text]


def _unknown(name: str) -> str:
    text = name.strip()[:60]  # to look for what is close to a book would take a day
    if (several := SEVERAL.match(text)) and (label := find(text[several.end() :])):
        return f"{text!r} asks for more than one; an image has at most one of each: write {label}"
    meant = " ".join(MEANT.get(word, word) for word in re.findall(r"[^\W\d_]+", text.lower()))
    closest = difflib.get_close_matches(meant, NAMES, n=3, cutoff=0.0)
    return f"unknown label {text!r}; the closest are {', '.join(closest)}"


def parse(text: str) -> LabelSet:
    """Read a label set from text: ``"red cube, blue sphere"``, ``"a red cube and a blue sphere"``.

    Commas, semicolons, ``and``, ``&`` and ``+`` stand between labels.

    Raises:
        UserError: as :func:`check`.
    """
    return check([part for part in SEPARATOR.split(text) if part.strip()])


def encode(names: Sequence[str]) -> Tensor:
    """Multi-hot vector of a label set, float32, shape (L,), entries 0 or 1.

    Raises:
        UserError: as :func:`check`.
    """
    vector = torch.zeros(NUM_LABELS)
    vector[[INDEX[name] for name in check(names)]] = 1.0
    return vector


def encode_all(label_sets: Sequence[Sequence[str]]) -> Tensor:
    """Multi-hot vectors of N label sets, float32, shape (N, L)."""
    return torch.stack([encode(names) for names in label_sets])


def decode(vector: Tensor) -> LabelSet:
    """Names of the entries above one half in a multi-hot vector of shape (L,), in label order.

    Raises:
        ValueError: the vector does not have shape (L,).
    """
    if vector.shape != (NUM_LABELS,):
        raise ValueError(f"expected shape ({NUM_LABELS},), got {tuple(vector.shape)}")
    return tuple(NAMES[index] for index in (vector > 0.5).nonzero().flatten().tolist())


def all_sets(size: int) -> list[LabelSet]:
    """Every label set of ``size`` labels, in label order: 24, 276, 2024 for 1, 2, 3.

    Raises:
        ValueError: ``size`` is not in 1..24.
    """
    if not 1 <= size <= NUM_LABELS:
        raise ValueError(f"size must be in 1..{NUM_LABELS}, got {size}")
    return list(itertools.combinations(NAMES, size))
