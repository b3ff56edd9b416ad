"""What several networks ask of their settings."""

import math
from collections.abc import Mapping


def check_whole(name: str, value: object, most: int, least: int = 1) -> None:
    """Refuse what is no whole number in least..most.

    Raises:
        ValueError: it is none; the message names the setting.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in {least}..{most}, got {value!r:.60}")


def check_wholes(settings: Mapping[str, object], most: Mapping[str, int]) -> None:
    """Refuse what is no whole number from 1 to the most of its name (the part after the dot).

    Raises:
        ValueError: one of them is none.
    """
    for name, value in settings.items():
        check_whole(name, value, most[name.split(".")[1]])


def check_lists_of_levels(first: str, one: object, second: str, other: object, most: int) -> None:
    """Refuse what are not two lists with an entry for each of 1..most levels.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(one, list | tuple) or not isinstance(other, list | tuple):
        raise ValueError(f"{first} and {second} must be lists")
    if len(one) != len(other) or not 1 <= len(one) <= most:
        raise ValueError(
            f"{first} has {len(one)} levels, {second} {len(other)};"
            f" they need the same number in 1..{most}"
        )


def check_multiple(image_size: int, patch_size: int, levels: int, halvings: int) -> None:
    """Refuse an image whose size cannot be halved so often.

    Raises:
        ValueError: the size is no multiple of patch_size · 2^halvings.
    """
    multiple = patch_size * 2**halvings
    if image_size % multiple:
        raise ValueError(
            f"data.image_size={image_size} must be a multiple of {multiple}"
            f" (net.patch_size={patch_size}, {levels} levels)"
        )


def check_number(name: str, value: object) -> None:
    """Refuse what is not a finite number above zero.

    Raises:
        ValueError: it is not; the message names the setting.
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number above 0, got {value!r:.60}")
