"""Quote overrides that Hydra's grammar would refuse or misread."""

import os
import re
from collections.abc import Collection, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from iclevr_diffusion.utils.files import expand_home

SWEEP_FLAGS = ("-m", "--multirun")
_BEGINS_A_SWEEP = ("hydra.mode=", "sweep=", "+sweep=")
_HYDRAS_PATHS = {"hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"}
_CONFIG_FLAGS = ("--config-path", "-cp", "--config-dir", "-cd", "--config-name", "-cn")
_CONFIG_FOLDER = re.compile(r"(--config-(?:path|dir)=)(~.*)", re.DOTALL)
_OVERRIDE = re.compile(r"(\+{0,2}[\w./@-]+=)(.*)", re.DOTALL)
_PYTHONS_NULL = "None"
_STRUCTURE = re.compile(r"[\[\]{}(),'\"]")  # of lists, mappings, functions and quoted text


def quoted(
    arguments: Sequence[str], paths: Collection[str] = (), words: Collection[str] = ()
) -> list[str]:
    """Quote the values of overrides that Hydra's grammar refuses or misreads.

    The grammar allows no ``~``, ``=`` and non-ASCII characters outside of quotes, and splits at
    commas: ``data.root=~/iclevr`` becomes ``data.root='~/iclevr'``. Quotes, escapes,
    interpolations, null, functions and, in a sweep, lists of choices keep their meaning, unless the
    setting is a path and a file or folder of exactly that name exists. ``None``, as the agent of a
    W&B sweep writes it, is null.

    Args:
        arguments: The arguments of the command, without the program.
        paths: The names of settings that are paths, or lists of paths.
        words: The names of settings in which a comma does not make a sweep.

    Raises:
        UserError: The folder of the configs has an unknown home folder ``~user``.
    """
    paths = {*paths, *_HYDRAS_PATHS}
    is_sweep = any(word in SWEEP_FLAGS or word.startswith(_BEGINS_A_SWEEP) for word in arguments)
    result, before = [], ""
    for word in arguments:
        if folder := _CONFIG_FOLDER.fullmatch(word):
            word = folder[1] + expand_home(folder[2])
        elif (match := _OVERRIDE.fullmatch(word)) and before not in _CONFIG_FLAGS:
            name, value = match[1].lstrip("+").removesuffix("="), match[2]
            if value == _PYTHONS_NULL:
                word = f"{match[1]}null"
            elif _needs_quotes(word, value, name in paths, name in words, is_sweep):
                new = match[1] + _quote(value)
                word = new if _parse(new) is not None else word
        result.append(word)
        before = word
    return result


def _needs_quotes(word: str, value: str, is_path: bool, is_words: bool, is_sweep: bool) -> bool:
    """Return whether Hydra would refuse this override or misread its value."""
    parsed = _parse(word)
    if parsed is None:
        return is_path or is_words or not _STRUCTURE.search(value)
    if not is_path and not is_words:
        return False
    meaning = parsed._value
    if meaning is None or isinstance(meaning, QuotedString | bool) or meaning == value:
        return False
    if is_words:
        return not isinstance(meaning, list)
    if _exists(value) or meaning == value.strip():  # Hydra strips spaces
        return True
    if parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP:
        return not is_sweep
    return isinstance(meaning, int | float | dict)


def _quote(value: str) -> str:
    """Return the value in quotes; of a list, quote only the items that need it."""
    if value.startswith("[") and value.endswith("]") and not _exists(value):
        items = [item.strip() for item in value[1:-1].split(",")]
        parts = [item if _parse(f"x=[{item}]") is not None else in_quotes(item) for item in items]
        return f"[{','.join(parts)}]"
    return in_quotes(value)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111  any text may be asked


def in_quotes(text: str) -> str:
    """Return a text as a quoted value of an override."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _parse(word: str) -> Override | None:
    """Parse an override as Hydra does; None if it is refused."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def overrides() -> list[str]:
    """Return the overrides of the command line, except for Hydra's own."""
    return list(HydraConfig.get().overrides.task)


def overridden() -> list[str]:
    """Return the names of the settings and groups in :func:`overrides`."""
    return [word.lstrip("+~").partition("=")[0] for word in overrides()]
