"""A composed config is checked against signatures before anything is built."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf

from iclevr_diffusion.cli.instantiate import instantiate
from iclevr_diffusion.cli.validate import Given, Node, check_config
from iclevr_diffusion.utils.errors import UserError


class Net:
    """A network of a user's."""

    def __init__(
        self,
        depth: int,
        channels: Sequence[int] = (8, 16),
        mode: Literal["film", "concat"] = "film",
        rate: float | None = 0.1,
        weights: Path | str | None = None,
        size: int = 64,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if size % 2:
            raise ValueError("an odd size has no middle")
        self.depth, self.channels, self.weights, self.size = depth, channels, weights, size


class Around:
    """An object with another one in it."""

    def __init__(self, inner: Net, name: str = "x", **anything: object) -> None:
        self.inner, self.name, self.anything = inner, name, anything


class NeedsFolder:
    """A callback that the command gives a folder."""

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.folder, self.every = folder, every


class Loose:
    """A class of a user's whose arguments have no type hints, or some that say nothing."""

    def __init__(self, depth, scale: Any = 1.0, *, flag=False, broken=None) -> None:
        if broken:
            raise RuntimeError("no\nluck")
        self.given = (depth, scale, flag)


@dataclass
class Paths:
    outputs: Path | str


@dataclass
class Schema:
    net: Node
    callbacks: dict[str, Annotated[Node, Given(("folder",))] | None]
    paths: Paths
    name: str
    seed: int
    plugins: list[str]


HERE = __name__


def config(**changes):
    content = {
        "net": {"_target_": f"{HERE}.Net", "depth": 2},
        "callbacks": {"mine": {"_target_": f"{HERE}.NeedsFolder"}, "none": None},
        "paths": {"outputs": "outputs"},
        "name": "run",
        "seed": 0,
        "plugins": [],
    }
    cfg = OmegaConf.create(content)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, merge=False, force_add=True)
    return cfg


def test_a_good_config_passes_and_is_built():
    cfg = config()
    check_config(cfg, Schema)
    net = instantiate(cfg.net, "net", size=32, unknown=5)
    assert (net.depth, net.size) == (2, 32)
    assert instantiate(cfg.callbacks.mine, "callbacks.mine", folder=Path("x")).folder == Path("x")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"net__depth": 2**70}, "net.depth must be a whole number of at most 64 bits, got"),
        ({"net__channels": [8, "x"]}, "net.channels must be a list of whole numbers, got [8, 'x']"),
        ({"net__mode": "add"}, "net.mode must be one of film, concat, got 'add'"),
        ({"net__weights": {"a": 1}}, "net.weights must be text or null, got {'a': 1}"),
        ({"net__chanels": [8]}, "net.chanels: there is no such setting; did you mean net.channels"),
        ({"net": {"_target_": f"{HERE}.Net"}}, "net.depth is needed: write net.depth=…"),
        ({"net": 5}, "net must be a group of settings, got 5"),
        ({"net": {"depth": 5}}, "net needs a _target_: the class to build"),
        (
            {"callbacks__other": {"every": 1}},
            "is callbacks=other missing?",
        ),
        ({"name": {"_target_": f"{HERE}.Net"}}, "name must be text, got {'_target_': "),
        ({"seed": {"_target_": "builtins.int"}}, "seed must be a whole number, got"),
        ({"paths___target_": "builtins.dict"}, "paths._target_: there is no such setting"),
        (
            {"callbacks___target_": "builtins.dict"},
            "callbacks._target_ must be a group of",
        ),
        ({"net___target_": "gone.Net"}, "net._target_=gone.Net: there is no module gone"),
        ({"net___target_": f"{HERE}.Nett"}, f"there is no Nett in {HERE}; did you mean Net?"),
        ({"net___target_": "Net"}, "expected the dotted name of a class"),
        ({"net___target_": f"{HERE}.HERE"}, "is neither a class nor a function"),
        ({"callbacks__mine__evry": 5}, "did you mean callbacks.mine.every?"),
        ({"callbacks__mine__every": None}, "callbacks.mine.every must be a whole number, got null"),
        ({"name": "a\0b"}, "name must be text, got 'a\\x00b'"),
        (
            {"name": "\udce9"},
            "name must be text, got '\\udce9', which is not UTF-8; in an ASCII locale",
        ),
        ({"paths__output": "x"}, "paths.output: there is no such setting; did you mean paths.out"),
        ({"plugins": ["gone_module"]}, "plugins: gone_module: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, line):
    with pytest.raises(UserError) as refusal:
        check_config(config(**changes), Schema)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_numbers_become_text_and_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = config(name=2024, paths__outputs="~/runs", net__weights="~/weights")
    check_config(cfg, Schema)
    assert (cfg.name, cfg.paths.outputs) == ("2024", "/home/me/runs")
    assert cfg.net.weights == "/home/me/weights"


def test_a_node_within_a_node_is_checked_and_built():
    inner = {"_target_": f"{HERE}.Net", "depth": 0}
    cfg = config(net={"_target_": f"{HERE}.Around", "inner": inner, "any": 1})
    check_config(cfg, Schema)
    with pytest.raises(UserError, match=r"^net\.inner\.depth must be at least 1, got 0$"):
        instantiate(cfg.net, "net")
    cfg.net.inner.depth = 1
    built = instantiate(cfg.net, "net")
    assert (built.inner.depth, built.anything) == (1, {"any": 1})
    cfg.net.inner.depth = "x"
    with pytest.raises(UserError, match=r"net\.inner\.depth must be a whole number"):
        check_config(cfg, Schema)


def test_a_message_that_names_no_setting_begins_with_the_path():
    with pytest.raises(UserError, match=r"^net: an odd size has no middle$"):
        instantiate(config(net__size=3).net, "net")


def test_arguments_without_type_hints_take_any_value():
    cfg = config(net={"_target_": f"{HERE}.Loose", "depth": 2, "scale": "x", "flag": True})
    check_config(cfg, Schema)
    assert instantiate(cfg.net, "net").given == (2, "x", True)


def test_whatever_a_class_of_a_users_raises_is_said_in_one_line():
    cfg = config(net={"_target_": f"{HERE}.Loose", "depth": 2, "broken": [1]})
    check_config(cfg, Schema)
    with pytest.raises(UserError, match=r"^net: RuntimeError: no luck$"):
        instantiate(cfg.net, "net")


def test_what_the_config_sets_is_not_given():
    assert instantiate(config(net__size=16).net, "net", size=32).size == 16
