"""What several networks ask of their settings."""


def check_whole(name: str, value: object, most: int) -> None:
    """Refuse what is no whole number in 1..most.

    Raises:
        ValueError: it is none; the message names the setting.
    """
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number in 1..{most}, got {value!r:.60}")
