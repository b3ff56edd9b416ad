"""Classes by name, for what is read from files."""

from typing import Generic, TypeVar

CLASS_NAME = "_class_name"  # the key of a class name in saved configs, as in diffusers

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries by name; unknown names raise an error that says how to make them known.

    Args:
        kind: The word for an entry in messages, such as ``network``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Add an entry. A class may be added again when its module is reloaded.

        Raises:
            ValueError: The name belongs to another entry.
        """
        known = self._entries.get(name, entry)
        if known is not entry and _origin(known) != _origin(entry):
            raise ValueError(f"there is another {self.kind} named {name}")
        self._entries[name] = entry

    def find(self, name: object) -> Entry:
        """Return the entry of a name.

        Raises:
            ValueError: The name is unknown.
        """
        if not isinstance(name, str) or name not in self._entries:
            raise ValueError(
                f"{self.kind} {name!r:.60} is unknown here (known: {', '.join(self._entries)});"
                " if it is your own, name the module that defines it: plugins=[…]"
            )
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of registration."""
        return tuple(self._entries)


def _origin(entry: object) -> tuple[object, object]:
    owner = entry if isinstance(entry, type) else type(entry)
    return owner.__module__, owner.__qualname__
