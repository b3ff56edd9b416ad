"""Check a composed config against the signatures of what will be built from it.

A mapping with ``_target_`` is checked against the signature and the type hints of that class or
function; a mapping without, against the dataclass that the command has for it
(:mod:`~iclevr_diffusion.cli.schema`). Ranges are checked by the constructors.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from inspect import Parameter
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from iclevr_diffusion.cli.values import (
    converted,
    fits,
    in_64_bits,
    is_mapping,
    items,
    parts,
    shown,
    words,
)
from iclevr_diffusion.utils.closest import did_you_mean
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.text import fits_utf8

TARGET = "_target_"
SCORING = ("conditions", "evaluator", "second", "guidance", "best")  # what training adds to score


class Node:
    """In a schema: a mapping with ``_target_``, whose class defines the other settings."""


class Given(tuple[str, ...]):
    """In a schema, as ``Annotated[Node, Given(("folder",))]``: arguments that the command adds."""


class UnknownSetting(UserError):
    """A config has a setting that does not exist."""

    def __init__(self, message: str, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


def check_config(cfg: DictConfig, schema: type) -> None:
    """Check a composed config, convert its values in place, and import the user's ``plugins``.

    A number where text belongs, such as ``name=2024``, becomes text, and ``~`` at the beginning of
    a path the home folder.

    Raises:
        UserError: A setting is missing, unknown or of another type, or a class cannot be imported.
    """
    # First check what needs no imports, so that a typo is reported at once.
    _Check(cfg, schema, nodes=False).mapping(cfg, schema, "")
    for name in cfg.get("plugins") or ():
        import_plugin(name)
    _Check(cfg, schema, nodes=True).mapping(cfg, schema, "")


def import_plugin(name: str) -> None:
    """Import a module of the user's, so that the classes in it are registered.

    Raises:
        UserError: There is none, or it cannot be imported.
    """
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a user's own module raises
        raise UserError(f"plugins: {name}: {type(error).__name__}: {error}") from error


class _Check:
    """One pass over a config: over what the schema says itself, or over its nodes."""

    def __init__(self, cfg: DictConfig, schema: type, nodes: bool) -> None:
        self.cfg, self.schema, self.nodes = cfg, schema, nodes

    def mapping(
        self,
        group: DictConfig,
        target: Callable[..., Any],
        path: str,
        given: Sequence[str] = (),
        in_node: bool = False,
    ) -> None:
        known, takes_any = parameters(target)
        present = [str(key) for key in group.keys()]  # noqa: SIM118  "in" omits those that are ???
        for key in present:
            if key not in known and not (key == TARGET and in_node) and not takes_any:
                message = self.no_such_setting(group, key, target, path)
                raise UnknownSetting(message, joined(path, key))
        for name, parameter in known.items():
            key = joined(path, name)
            if name in present:
                if OmegaConf.is_missing(group, name):
                    raise UserError(f"{key} is needed: write {key}=…")
                self.value(group, name, parameter.annotation, key, in_node)
            elif parameter.default is parameter.empty and name not in given:
                if name in SCORING and path.startswith("callbacks."):
                    raise UserError(f"{path} needs a command that scores images; set {path}=null")
                raise UserError(f"{key} is needed: write {key}=…")

    def value(
        self, group: DictConfig | ListConfig, name: Any, hint: Any, key: str, in_node: bool = False
    ) -> None:
        value = group[name]
        if isinstance(value, DictConfig) and (inner := schema_of(hint)) and not in_node:
            self.mapping(value, inner, key)
        elif isinstance(value, DictConfig) and TARGET in value and fits(value, hint):
            self.node(value, hint, key)
        elif isinstance(value, DictConfig) and (entries := nodes_of(hint)):
            for entry in map(str, value):
                path = joined(key, entry)
                if isinstance(value[entry], DictConfig) and TARGET not in value[entry]:
                    raise UserError(
                        f"{path} needs a {TARGET}: the class to build; is {key}={entry} missing?"
                    )
                self.value(value, entry, entries, path)
        else:
            new = converted(value, hint)
            if not fits(new, hint):
                raise UserError(refusal(key, hint, value))
            if isinstance(value, DictConfig) and not any(is_mapping(part) for part in parts(hint)):
                raise UserError(f"{key} needs a {TARGET}: the class to build")
            if new is not value and new != value:
                group[name] = new

    def node(self, node: DictConfig, hint: Any, key: str) -> None:
        if self.nodes:
            target = find_target(node[TARGET], key)
            self.mapping(node, target, key, _given(hint), in_node=True)

    def no_such_setting(
        self, group: DictConfig, key: str, target: Callable[..., Any], path: str
    ) -> str:
        """Return the message for an unknown setting: its replacement, or the closest name."""
        full = joined(path, key)
        instead: dict[str, str] = getattr(target, "instead", {})
        if key in instead:
            value = "???" if OmegaConf.is_missing(group, key) else shown(group[key])
            return f"{full} is not used here: {instead[key].format(value=value)}"
        names = list(every_name(self.cfg, self.schema, ""))
        names += [joined(path, name) for name in instead]
        return f"{full}: there is no such setting{did_you_mean(full, names)}"


def joined(path: str, name: str) -> str:
    """Return the dotted name of a setting."""
    return f"{path}.{name}" if path else name


def refusal(key: str, hint: Any, value: Any) -> str:
    """Return the line that says of which type a setting has to be."""
    most = " of at most 64 bits" if type(value) is int and not in_64_bits(value) else ""
    advice = ""
    if isinstance(value, str) and value.isidentifier() and "group of settings" in words(hint):
        group = key.replace(".", "/")
        advice = f"; a file in conf/{group} is chosen with {group}={value}"
    elif isinstance(value, str) and not fits_utf8(value):
        advice = ", which is not UTF-8; in an ASCII locale, set PYTHONUTF8=1"
    elif isinstance(value, str) and not value.strip():
        advice = ", which is empty"
    return f"{key} must be {words(hint)}{most}, got {shown(value)}{advice}"


def schema_of(hint: Any) -> type | None:
    """Return the dataclass among the types of a hint."""
    found = [part for part in parts(hint) if hasattr(part, "__dataclass_fields__")]
    return found[0] if found else None


def nodes_of(hint: Any) -> Any:
    """Return the hint of the values of a mapping of nodes; None for any other hint."""
    for part in parts(hint):
        for item in items(part) if is_mapping(part) else ():
            if Node in parts(item):
                return item
    return None


def _given(hint: Any) -> tuple[str, ...]:
    """Return the arguments that a command adds to a node of this hint."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    extras = (extra for member in members for extra in getattr(member, "__metadata__", ()))
    return next((extra for extra in extras if isinstance(extra, Given)), ())


@cache
def parameters(target: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """Return the arguments of a class or function by name, and whether it takes others.

    Their annotations are resolved, or Any.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # of a few builtins nothing is known
        return {}, True
    hints = _hints(target)
    known = {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return known, Parameter.VAR_KEYWORD in kinds


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a constructor or function; empty where they cannot be resolved."""
    is_plain_class = inspect.isclass(target) and not hasattr(target, "__dataclass_fields__")
    of: Any = target.__init__ if is_plain_class else target
    try:
        return get_type_hints(of, include_extras=True)
    except Exception:  # of names that only a type checker imports
        return {}


def every_name(cfg: DictConfig, target: Callable[..., Any], path: str) -> Iterator[str]:
    """Every setting that a config could have, as dotted names; nodes' classes are imported."""
    for name, parameter in parameters(target)[0].items():
        yield joined(path, name)
        value = None if OmegaConf.is_missing(cfg, name) else cfg.get(name)
        if not isinstance(value, DictConfig):
            continue
        inner = schema_of(parameter.annotation)
        if TARGET in value:
            target_of_node = find_target(value[TARGET], joined(path, name))
            yield from every_name(value, target_of_node, joined(path, name))
        elif inner:
            yield from every_name(value, inner, joined(path, name))
        elif nodes_of(parameter.annotation):
            for key in value:
                entry = joined(joined(path, name), str(key))
                yield entry
                if isinstance(value[key], DictConfig) and TARGET in value[key]:
                    yield from every_name(value[key], find_target(value[key][TARGET], entry), entry)


def find_target(name: Any, path: str) -> Callable[..., Any]:
    """Return the class or function of a dotted name.

    Raises:
        UserError: There is none; ``path`` is the node that names it.
    """
    where = f"{joined(path, TARGET)}={name}"
    words = str(name).split(".")
    if len(words) < 2 or not all(word.isidentifier() for word in words):
        raise UserError(f"{where}: expected the dotted name of a class, such as my_module.MyNet")
    for count in range(len(words) - 1, 0, -1):
        module = ".".join(words[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{where}: {module} needs {error.name}, which is missing"
                ) from error
            continue
        except Exception as error:  # whatever a user's own module raises
            raise UserError(f"{where}: {type(error).__name__} in {module}: {error}") from error
        for word in words[count:]:
            if not hasattr(found, word):
                close = did_you_mean(word, [key for key in dir(found) if key[0] != "_"])
                raise UserError(f"{where}: there is no {word} in {module}{close}")
            found = getattr(found, word)
        if not callable(found):
            raise UserError(f"{where} is neither a class nor a function")
        target: Callable[..., Any] = found
        return target
    raise UserError(
        f"{where}: there is no module {words[0]}; is its folder in PYTHONPATH, or the package"
        " installed?"
    )
