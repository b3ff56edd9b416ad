"""Explain in one line why Hydra refuses a command line."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.cli.overrides import SWEEP_FLAGS
from iclevr_diffusion.cli.schema import names_in
from iclevr_diffusion.utils.closest import closest, did_you_mean
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import any_of, one_line

UNKNOWN = re.compile(
    r"Could not (?:override|delete) '([^'=]*)[^']*'|Could not delete from config\. '([^']*)'"
)
IN_ANOTHER_PROGRAM = re.compile(r"Could not override '(\w+)'\.\s+No match in the defaults")
GIVEN_TWICE = re.compile(r"An item is already at '([^']*)'|Multiple values for (\S+)\. To override")
AMBIGUOUS = re.compile(r"Ambiguous value for argument '([^']*)'", re.DOTALL)
NAME = re.compile(r"[+~]*[\w./@:-]+", re.ASCII)
ELSEWHERE = "@package "  # in files that change settings of other groups
WITH_LISTS = ("logger", "callbacks", "debug")  # groups whose options add up
NOT_SETTINGS = ("defaults", "hydra", "_target_")
NO_NAME = "Config group override must be"
RERUN = "--experimental-rerun"
WRONG_FLAGS = ("Only one of --", "The --resolve flag", "Expecting one subcommand")


@contextmanager
def explained(config: Path, schema: type) -> Iterator[None]:
    """Turn Hydra's refusals in the block, which composes ``config``, into a UserError.

    Raises:
        UserError: With one line that names the closest groups, choices or settings.
    """
    try:
        yield
    except MissingConfigException as error:
        if not error.missing_cfg_file:
            raise
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        # Of an option in a list, Hydra does not say which others there are.
        options = error.options or [path.stem for of, path in _files(config) if of == group]
        if not options:
            whole = f"{group}/{name}" if group else name
            raise UserError(f"--config-name={whole}: there is no such config") from error
        raise UserError(_no_choice(group, name, options)) from error
    except OverrideParseException as error:
        raise UserError(_unreadable(one_line(error.override))) from error
    except HydraException as error:
        line = _in_one_line(str(error), config, schema)
        if line is None:
            raise
        raise UserError(line) from error
    except ValueError as error:
        if str(error).startswith(WRONG_FLAGS):
            raise UserError(str(error)) from error
        if not str(error).startswith(NO_NAME):
            raise
        groups = ", ".join(groups_of(config))
        raise UserError(
            f"choose an option by its name ({groups}), not by a number or null"
        ) from error


def refuse_unknown_flags(arguments: Sequence[str], config: Path, schema: type) -> None:
    """Refuse unknown flags, as Hydra's parser does, but in one line, and abbreviated ones.

    Raises:
        UserError: A flag is unknown or has a wrong value; the closest one or setting is named.
    """

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False  # --experiment would be the flag below
    known, rest = parser.parse_known_args(arguments)
    if known.experimental_rerun is not None:  # it needs a file that these commands do not write
        rest.append(RERUN)
    if known.package is not None and known.cfg is None:
        raise UserError(f"--package is for --cfg: --cfg job --package {known.package}")
    for word in rest:
        flag = word.partition("=")[0]
        if flag.startswith("-"):
            guess = _flag_or_setting(flag, parser.format_usage(), config, schema)
            raise UserError(f"there is no flag {flag[:60]}{guess} Settings are name=value")


def _flag_or_setting(flag: str, usage: str, config: Path, schema: type) -> str:
    name = flag.lstrip("-").replace("-", "_")
    names = [*groups_of(config), *known_names(config, schema)]
    flags = [known for known in re.findall(r"--[a-z-]+", usage) if known != RERUN]
    if name not in names and closest(flag, flags):
        return did_you_mean(flag, flags)
    return did_you_mean(name, names)


def refuse_lists(arguments: Sequence[str], config: Path) -> None:
    """Refuse several options of a group of which only the last one would count.

    Raises:
        UserError: A group has a list of options.
    """
    for word in arguments:
        group, _, value = word.partition("=")
        if value.startswith("[") and _takes_one(group, config):
            raise UserError(f"{word}: {group} takes one option, not a list")


def groups_of(config: Path) -> list[str]:
    """Return the groups in a config's defaults list, such as ``net``."""
    content = OmegaConf.load(config)
    defaults = content.get("defaults", []) if isinstance(content, DictConfig) else []
    names = (str(name) for entry in defaults if not isinstance(entry, str) for name in entry)
    return [name for name in names if re.fullmatch(r"\w+", name)]


def known_names(config: Path, schema: type) -> list[str]:
    """Return the dotted names of all settings in a config's files, without importing classes.

    Files in the user's ``--config-dir`` count, too.
    """
    names = dict.fromkeys([*names_in(schema), *_keys(_content(config), "")])
    for group, path in _options(config):
        names |= dict.fromkeys(_keys(_content(path), group.replace("/", ".")))
    return list(names)


def choices_with(setting: str, config: Path) -> list[str]:
    """Return the choices, such as ``logger=wandb``, whose files have a setting.

    Options that inherit it from another one of their group come last.
    """
    options = {f"{group}={path.stem}": (group, _content(path)) for group, path in _options(config)}

    def itself(choice: str) -> bool:
        group, content = options[choice]
        return setting in _keys(content, group.replace("/", "."))

    def inherits(choice: str) -> bool:
        group, content = options[choice]
        bases = content.get("defaults", ()) if isinstance(content, dict) else ()
        return any(has(f"{group}={base}") for base in bases)

    def has(choice: str) -> bool:
        return choice in options and (itself(choice) or inherits(choice))

    return sorted(filter(has, options), key=lambda choice: not itself(choice))


def _options(config: Path) -> Iterator[tuple[str, Path]]:
    """Yield the group, such as ``data/holdout``, and the file of each option of its settings."""
    for group, path in _files(config):
        if ELSEWHERE not in path.read_text("utf-8"):
            yield group, path


def _files(config: Path) -> Iterator[tuple[str, Path]]:
    """Yield the group and the file of each option of a config."""
    for folder in (config.parent, *_users_folders()):
        for group in groups_of(config):
            for path in sorted((folder / group).rglob("*.yaml")):
                yield path.parent.relative_to(folder).as_posix(), path


def _content(path: Path) -> object:
    return OmegaConf.to_container(OmegaConf.load(path))


def _users_folders() -> list[Path]:
    """Return the folder that the command line names with ``--config-dir``, if any."""
    known, _ = get_args_parser().parse_known_args(sys.argv[1:])
    return [Path(known.config_dir)] if known.config_dir else []


def _keys(content: object, path: str) -> Iterator[str]:
    """Yield the dotted names in a file of settings."""
    if path:
        yield path
    for key, value in content.items() if isinstance(content, dict) else ():
        if key not in NOT_SETTINGS:
            yield from _keys(value, f"{path}.{key}" if path else str(key))


def _no_choice(group: str, name: str, options: Sequence[str]) -> str:
    if not name:
        return f"{group}= is empty; choose one of {', '.join(options)}"
    guess = did_you_mean(name, options)
    return f"{group}={name}: there is no such {group}{guess} There are {', '.join(options)}"


def _choice_meant(setting: str, config: Path) -> str | None:
    """Return the choice that an unknown setting means, such as ``net=uvit`` of net.name=uvit."""
    group = setting.rpartition(".")[0].replace(".", "/")
    options = [path.stem for of, path in _options(config) if of == group]
    for word in sys.argv[1:]:
        name, _, value = word.lstrip("+").partition("=")
        if name == setting and value in options:
            return f"{group}={value}"
    return None


def _no_such_setting(setting: str, config: Path) -> str:
    """Say that the chosen option of a group lacks a setting, and which ones have it."""
    choices = choices_with(setting, config)
    if not choices:
        return "the chosen option has no such setting; --cfg job shows those it has"
    group = choices[-1].partition("=")[0]
    return f"the chosen {group} has no such setting; choose {any_of(choices)}"


def _takes_one(group: str, config: Path) -> bool:
    """Return whether a name is that of a group that takes one option, not a list."""
    return group not in WITH_LISTS and group in groups_of(config)


def _unreadable(override: str) -> str:
    name, equals, _ = override.partition("=")
    if not equals or not NAME.fullmatch(name):
        return f"{override!r} is not a setting: write name=value, and quote a value that has spaces"
    return f"{override}: this value cannot be read; quote it: {name}=\"'…'\""


def _in_one_line(message: str, config: Path, schema: type) -> str | None:
    """Return an explanation of a message of Hydra's; None if it is unknown."""
    if match := IN_ANOTHER_PROGRAM.match(message):
        group = match[1]
        within = [name for name in known_names(config, schema) if name.startswith(f"{group}.")]
        if not within:
            return f"this command has no {group}; --help lists its settings"
        return (
            f"{group}=… is a choice that this command does not have; set the values one by one,"
            f" such as {within[0]}=…; --help lists them"
        )
    if match := UNKNOWN.match(message):
        key = (match[1] or match[2]).partition("@")[0]
        groups, names = groups_of(config), known_names(config, schema)
        if key in groups:
            return f"{key} is a config group: choose an option with {key}=…, without @ or ~"
        if choice := _choice_meant(key, config):
            return f"there is no setting {key!r}; choose the option with {choice}"
        if key in names:
            return f"{key}: {_no_such_setting(key, config)}"
        return (
            f"there is no setting {key!r}{did_you_mean(key, [*groups, *names])} --help lists them"
        )
    if match := GIVEN_TWICE.search(message):
        key = match[1] or match[2]
        return f"{key} has a value already: to change it, write {key}=… without the +"
    if match := AMBIGUOUS.match(message):
        word = " ".join(match[1].split())
        if any(flag in sys.argv for flag in SWEEP_FLAGS):
            return f"{word}: --help shows the settings of one run; leave out -m or --help"
        group = word.partition("=")[0]
        brackets = "" if _takes_one(group, config) else ", or brackets, which make a list"
        return f"{word}: several values need -m, which runs each{brackets}"
    return None
