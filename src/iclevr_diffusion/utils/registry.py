"""Classes by name, for what is read from files."""

from typing import TypeVar

CLASS_NAME = "_class_name"  # the key of a class name in saved configs, as in diffusers

Entry = TypeVar("Entry")


class Registry(dict[str, Entry]):
    """Entries by name, in the order of registration.

    Args:
        kind: The word for an entry in messages, such as ``network``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry. A class may be added again: its module is reloaded, or a cell run again.

        Raises:
            ValueError: The name belongs to another entry.
        """
        known = self.get(name, entry)
        if known is not entry and _origin(known) != _origin(entry):
            raise ValueError(f"there is another {self.kind} named {name}")
        self[name] = entry

    def find(self, name: object) -> Entry:
        """Return the entry of a name.

        Raises:
            ValueError: The name is unknown; the message says how to make it known.
        """
        if not isinstance(name, str) or name not in self:
            raise ValueError(
                f"{self.kind} {name!r:.60} is unknown here (known: {', '.join(self)});"
                " if it is your own, name its module in plugins=[…], or import it"
            )
        return self[name]


def _origin(entry: object) -> tuple[object, object]:
    owner = entry if isinstance(entry, type) else type(entry)
    return owner.__module__, owner.__qualname__
