"""Build the objects that a config names."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from iclevr_diffusion.cli.validate import TARGET, find_target, joined, parameters
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.imports import is_own_code
from iclevr_diffusion.utils.text import one_line

# Arguments that a command gives, and the settings that they come from.
SHARED = {
    "epochs": "trainer.max_epochs",
    "image_size": "data.image_size",
    "label_drop": "guidance.label_drop",
    "max_steps": "trainer.max_steps",
    "timesteps": "schedule.timesteps",
    "train_on": "train_on",
}
GROUPS = (
    "callbacks",
    "data",
    "evaluator",
    "guidance",
    "logger",
    "model",
    "net",
    "optimizer",
    "prediction",
    "sampler",
    "schedule",
    "trainer",
)


def plain(node: DictConfig) -> dict[str, Any]:
    """Return a config node as plain, resolved containers."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True, throw_on_missing=True))


def instantiate(node: DictConfig, path: str, **given: Any) -> Any:
    """Call the ``_target_`` of a node with its settings; nodes in it are built first.

    Args:
        node: A checked config node.
        path: Its dotted name, which begins the line of an error.
        given: Further arguments, passed to targets that have parameters of these names; settings in
            the config take precedence.

    Raises:
        UserError: The target refuses its arguments.
    """
    return _build(plain(node), path, given)


def _build(value: Any, path: str, given: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_build(entry, f"{path}[{number}]", {}) for number, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    settings = {
        key: _build(entry, joined(path, str(key)), {})
        for key, entry in value.items()
        if key != TARGET
    }
    if TARGET not in value:
        return settings
    target = find_target(value[TARGET], path)
    known, _ = parameters(target)
    arguments = {name: argument for name, argument in given.items() if name in known}
    names = {name: joined(path, name) for name in known}
    names |= {name: full for name, full in SHARED.items() if name not in settings}
    with named(path, names), foreign_errors(target, path):
        return target(**(arguments | settings))


@contextmanager
def foreign_errors(target: Callable[..., Any], path: str) -> Iterator[None]:
    """Within the block, report whatever the code of a user or a library raises.

    Raises:
        UserError: ``target`` is not of this package, and has raised another error than
            :func:`named` reports.
    """
    try:
        yield
    except (ValueError, TypeError, UserError):
        raise
    except Exception as error:
        if is_own_code(target):
            raise
        raise UserError(f"{path}: {type(error).__name__}: {one_line(error)}") from error


@contextmanager
def named(path: str, settings: Mapping[str, str]) -> Iterator[None]:
    """Within the block, report an object's refusal of its settings as a mistake of the user.

    Args:
        path: The object's dotted name in the config.
        settings: The dotted names of its settings, by the names of its arguments.

    Raises:
        UserError: With the object's own words, and the dotted name of the setting.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(with_path(str(error), path, settings)) from error


def with_path(message: str, path: str, settings: Mapping[str, str]) -> str:
    """Return a message such as ``decay must be in [0, 1)``, with the dotted name in front."""
    match = re.match(r"[A-Za-z_]\w*", message)
    argument = match[0] if match else ""
    after = message[len(argument) :]
    if after.startswith("."):  # of a node within, or a full name
        is_within = argument in settings and argument not in GROUPS
        return joined(path, message) if is_within else message
    if argument in settings:
        return settings[argument] + after
    is_told = not path or argument == path or after.startswith("=")
    return message if is_told else f"{path}: {message}"
