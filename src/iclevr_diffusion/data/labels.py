"""Label vocabularies, and the 24 labels of i-CLEVR.

A label set is a tuple of names, such as ``("red cube", "blue sphere")``. Its multi-hot vector is a
float32 tensor of shape (L,), in the order of the vocabulary.
"""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from iclevr_diffusion.utils.checks import check_range
from iclevr_diffusion.utils.errors import UserError

LabelSet = tuple[str, ...]
MAX_NAMED = 2  # unknown labels named in one message
LONGEST = 60  # characters of a name that are compared: difflib takes quadratic time
SEPARATOR = re.compile(r"[,;&+|\n，、；]|\band\b", re.IGNORECASE)
QUOTES = "\"'`“”‘’「」"
WITHOUT = re.compile(r"(\b(no|without|0|zero)\s+|^[-!~])", re.IGNORECASE)
ARTICLE = re.compile(r"^(a|an|the|one|1|1x) ")
SEVERAL = re.compile(
    r"(?:a\s+)?(?!0*[01]x?\s)(\d+|two|three|four|five|six|seven|eight|nine|ten|both|several|many|some"
    r"|few|pair|couple|dozen)\s*x?\s+(?:of\s+)?",
    re.IGNORECASE,
)


class Vocabulary:
    """The labels of a data set, in the order of its multi-hot vectors.

    Args:
        names: One name per label. Names differ in more than case, spaces and a plural s, and
            contain no separator, such as ``,`` or the word ``and`` (see :meth:`split`), and no
            characters that control a terminal.
        spellings: Words that are accepted for others: ``{"grey": "gray"}``.
        related: Words that are not accepted, but help to suggest a label: ``{"ball": "sphere"}``.

    Attributes:
        names: The names, as given.
        index: The position of each name.

    Raises:
        ValueError: There is no name, or a name is empty, ambiguous or holds such a character.
    """

    def __init__(
        self,
        names: Sequence[str],
        spellings: Mapping[str, str] = MappingProxyType({}),
        related: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.names = tuple(names)
        self.index = {name: number for number, name in enumerate(self.names)}
        self.spellings = dict(spellings)
        self.related = dict(related)
        self._canonical: dict[str, str] = {}
        if not self.names:
            raise ValueError("a vocabulary needs at least one label")
        for name in self.names:
            is_text = isinstance(name, str) and name.strip() and name.isprintable()
            if not is_text or SEPARATOR.search(name):
                raise ValueError(f"not a label: {name!r:.60}")
            if other := self._canonical.get(self._key(name)):
                raise ValueError(f"labels that are too alike: {other!r} and {name!r}")
            self._canonical[self._key(name)] = name

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"Vocabulary({list(self.names)})"

    def find(self, name: str) -> str | None:
        """Return the canonical spelling of one label, or None if it is unknown.

        Case, spaces, an article, a plural s and other spellings are accepted: in i-CLEVR,
        ``" the Grey  CUBES"`` → ``"gray cube"``.
        """
        found = self._canonical.get(self._key(name))
        return found or self._canonical.get(self._key(ARTICLE.sub("", _plain(name))))

    def check(self, names: str | Sequence[str]) -> LabelSet:
        """Return the canonical label set of names or of a text, in the order given.

        Args:
            names: As :meth:`split`.

        Raises:
            UserError: There is no name, a name is unknown or asks for several objects of one label,
                or a label is given twice.
        """
        parts = self.split(names)
        found = {part: self.find(part) for part in parts}
        unknown = [part for part, label in found.items() if label is None]
        if unknown:
            lines = [self._unknown(part) for part in unknown[:MAX_NAMED]]
            if len(unknown) > MAX_NAMED:
                lines.append(f"and {len(unknown) - MAX_NAMED} more unknown labels")
            raise UserError("; ".join(lines))
        labels = tuple(label for part in parts if (label := found[part]))
        if not labels:
            raise UserError(f"no label given; write for example '{', '.join(self.names[:2])}'")
        doubled = [name for name in dict.fromkeys(labels) if labels.count(name) > 1]
        if doubled:
            raise UserError(
                f"label given twice: {', '.join(doubled)}; an image has at most one of each"
            )
        return labels

    def split(self, names: str | Sequence[str]) -> list[str]:
        """Split a text such as ``"a red cube and a blue sphere"`` into labels, as they are written.

        Labels are separated by commas, semicolons, line breaks, ``and``, ``&``, ``+`` or ``|``. Of
        several names, each may hold several labels, too; one that is empty stays.
        """
        if isinstance(names, str):
            return [part for part in SEPARATOR.split(names) if part.strip()]
        result: list[str] = []
        for name in names:
            is_one = name in self.index or not name.strip()
            result += [name] if is_one else self.split(name)
        return result

    def encode(self, names: str | Sequence[str]) -> Tensor:
        """Multi-hot vector of a label set, float32, (L,), with entries 0 or 1.

        Raises:
            UserError: As :meth:`check`.
        """
        vector = torch.zeros(len(self))
        vector[[self.index[name] for name in self.check(names)]] = 1.0
        return vector

    def encode_all(self, label_sets: Sequence[Sequence[str]]) -> Tensor:
        """Multi-hot vectors of N label sets, float32, (N, L)."""
        return torch.stack([self.encode(names) for names in label_sets])

    def decode(self, vector: Tensor) -> LabelSet:
        """Names of the entries above 0.5 in a multi-hot vector (L,), in the vocabulary's order.

        Raises:
            ValueError: The vector does not have shape (L,).
        """
        if vector.shape != (len(self),):
            raise ValueError(f"expected shape ({len(self)},), got {tuple(vector.shape)}")
        return tuple(self.names[index] for index in (vector > 0.5).nonzero().flatten().tolist())

    def all_sets(self, size: int) -> list[LabelSet]:
        """Every label set of ``size`` labels, in the vocabulary's order.

        Raises:
            ValueError: ``size`` is not between 1 and L.
        """
        check_range("size", size, 1, len(self))
        return list(itertools.combinations(self.names, size))

    def _key(self, name: str) -> str:
        """Return the form in which names are compared."""
        words = _plain(name).removesuffix("s").split(" ")
        return " ".join(self.spellings.get(word, word) for word in words)

    def _unknown(self, name: str) -> str:
        text = name.strip()[:LONGEST]
        if (several := SEVERAL.match(text)) and (label := self.find(text[several.end() :])):
            return (
                f"{text!r} asks for more than one; an image has at most one of each: write {label}"
            )
        if (without := WITHOUT.search(text)) and (label := self.find(text[without.end() :])):
            return (
                f"{text!r}: for an image without it, use guidance.mode=composed and 'not {label}'"
            )
        if len(labels := self._named_in(text)) > 1:
            return f"unknown label {text!r}; separate labels by commas: {', '.join(labels)}"
        words = re.findall(r"[^\W\d_]+", text.lower())
        meant = " ".join(self.related.get(word, word) for word in words)
        closest = difflib.get_close_matches(meant, self.names, n=3, cutoff=0.0)
        return f"unknown label {text!r}; the closest are {', '.join(closest)}"

    def _named_in(self, text: str) -> LabelSet:
        """Return the labels that a text names, whatever is between them."""
        words, labels = re.findall(r"[^\W_]+", text), dict[str, None]()
        while words:
            for end in range(len(words), 0, -1):
                if label := self.find(" ".join(words[:end])):
                    labels[label] = None
                    break
            words = words[end:]
        return tuple(labels)


def _plain(name: str) -> str:
    """Return a name in lower case, without punctuation except for ``-`` and ``!`` before it."""
    text = name.strip(f" .?(){QUOTES}").rstrip("!")
    return " ".join(re.sub(r"(?<=.)[-_]", " ", text).split()).lower()


COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
SHAPES = ("cube", "sphere", "cylinder")
# In the order of the course's objects.json: eight colors times three shapes.
ICLEVR_LABELS = Vocabulary(
    [f"{color} {shape}" for shape in SHAPES for color in COLORS],
    spellings={"grey": "gray"},
    related={
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
    },
)
NAMES, NUM_LABELS = ICLEVR_LABELS.names, len(ICLEVR_LABELS)
