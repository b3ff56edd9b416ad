"""Range checks that constructors share.

Each raises ``ValueError`` with the argument's name, what it must be, and the value that was given.
"""

import math
from collections.abc import Iterable, Mapping

MAX_LABELS = 10_000  # the largest vocabulary that a network accepts
MAX_TIMESTEPS = 100_000


def check_int(name: str, value: object, most: int) -> None:
    """Check that a value is a whole number in 1..most."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number in 1..{most}, got {value!r:.60}")


def check_ints(values: Mapping[str, object], most: Mapping[str, int]) -> None:
    """Check that each value is a whole number from 1 to the maximum listed under its name."""
    for name, value in values.items():
        check_int(name, value, most[name])


def check_bool(name: str, value: object) -> None:
    """Check that a value is true or false."""
    if type(value) is not bool:
        raise ValueError(f"{name} must be true or false, got {value!r:.60}")


def check_positive(name: str, value: object) -> None:
    """Check that a value is a finite number above zero."""
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be above 0, got {value!r:.60}")


def check_at_least(name: str, value: float, least: int) -> None:
    """Check that a number is finite and at least ``least``."""
    if not least <= value < math.inf:
        bound = f"at least {least}" if least else "0 or more"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_range(name: str, value: float, least: int, most: int) -> None:
    """Check that a number is in least..most."""
    if not least <= value <= most:
        raise ValueError(f"{name} must be in {least}..{most}, got {value}")


def check_share(name: str, value: float) -> None:
    """Check that a number is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check that a value is one of several names."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r:.60}")


def check_level_lists(first: str, one: object, second: str, other: object, most: int) -> None:
    """Check that two values are lists with one entry for each of 1..most levels."""
    if not isinstance(one, list | tuple) or not isinstance(other, list | tuple):
        raise ValueError(f"{first} and {second} must be lists")
    if len(one) != len(other) or not 1 <= len(one) <= most:
        raise ValueError(
            f"{first} has {len(one)} levels, {second} {len(other)};"
            f" they need the same number in 1..{most}"
        )


def check_divisible(image_size: int, patch_size: int, levels: int, halvings: int) -> None:
    """Check that an image can be halved as often as the levels require.

    Raises:
        ValueError: The size is not a multiple of patch_size · 2^halvings.
    """
    multiple = patch_size * 2**halvings
    if image_size % multiple:
        raise ValueError(
            f"image_size={image_size} must be a multiple of {multiple}"
            f" (patch_size={patch_size}, {levels} levels)"
        )


def check_vocabulary(num_labels: int, num_colors: int) -> None:
    """Check the number of labels, and that the colors divide it.

    Raises:
        ValueError: A number is out of range, or the labels are not num_colors times some shapes.
    """
    check_int("num_labels", num_labels, MAX_LABELS)
    check_int("num_colors", num_colors, num_labels)
    if num_labels % num_colors:
        raise ValueError(f"num_labels={num_labels} must be a multiple of num_colors={num_colors}")
