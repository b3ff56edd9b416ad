"""Overrides as a shell hands them over."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bad_input_cases import good_folder
from helpers import SMALL_RUN as SMALL
from iclevr_diffusion import evaluate, report, sample, train
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.overrides import quoted
from iclevr_diffusion.cli.schema import (
    CLASS_PATHS,
    Evaluate,
    Sample,
    Train,
    names_of_paths,
    names_of_texts,
)
from iclevr_diffusion.cli.validate import TARGET, find_target, joined, parameters
from iclevr_diffusion.cli.values import is_path
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home

PATHS = names_of_paths(Train) | names_of_paths(Evaluate)
LABELS = names_of_texts(Sample)


def value_of(word: str):
    """What Hydra takes the value of an override for."""
    value = OverridesParser.create().parse_override(word).value()
    if isinstance(value, list):
        return [item.text if isinstance(item, QuotedString) else item for item in value]
    return value.text if isinstance(value, QuotedString) else value


def read(word: str, *others: str):
    return value_of(quoted([word, *others], PATHS, LABELS)[0])


def test_paths_are_known_by_their_settings():
    assert {
        "data.root",
        "paths.outputs",
        "paths.cache",
        "net.coarse_weights",
        "evaluator.checkpoint",
        "resume",
        "weights",
        "out",
        "lists",
    } <= PATHS
    assert {"labels"} == LABELS


def paths_of_classes(content: object, path: str) -> Iterator[str]:
    """The settings in a part of a config that a class takes as paths, as dotted names."""
    if not isinstance(content, dict):
        return
    known = parameters(find_target(content[TARGET], path))[0] if TARGET in content else {}
    for key, value in content.items():
        name = joined(path, key)
        if key in known and is_path(known[key].annotation):
            yield name
        yield from paths_of_classes(value, name)


def test_all_paths_that_are_settings_of_classes_are_known():
    found = set()
    for file in CONF.rglob("*.yaml"):
        folder = file.parent.relative_to(CONF)
        group = "" if "@package _global_" in file.read_text() else ".".join(folder.parts)
        if group.partition(".")[0] != "hydra":
            found |= {*paths_of_classes(OmegaConf.to_container(OmegaConf.load(file)), group)}
    assert found == {*CLASS_PATHS}


@pytest.mark.parametrize(
    "path",
    [
        "~/iclevr",
        "~someone/iclevr",
        "資料/iclevr",
        "my data/iclevr",
        "données (2)/iclevr",
        "a=b",
        "a,b",
        "it's",
        'say "hi"',
        "x[1]",
        "{a: b}",
        "a{b",
        "1e3",
        "1_000",
        "007",
        "C:\\data\\iclevr",
        "ends with \\",
        "#1 & more; $HOME",
        "-",
    ],
)
@pytest.mark.parametrize("name", ["data.root", "weights", "hydra.run.dir", "+paths.outputs"])
def test_path_is_read_as_the_shell_hands_it_over(path, name):
    assert read(f"{name}={path}") == path


@pytest.mark.parametrize(
    "word",
    [
        "data.root=data/iclevr",
        "data.root='~/a, b'",
        'data.root="資料"',
        "data.root=${oc.env:HOME}/iclevr",
        "data.root=a\\,b",
        "data.root=null",
        "resume=true",
        "data.root=choice(a,b)",
        "lists=[test,new_test]",
        "seed=1,2",
        "optimizer.lr=1e-3",
        "net.blocks=[1,2]",
        "name=[unclosed",
        "~data.root",
        "--config-dir",
        "資料=a",
    ],
)
def test_what_has_a_meaning_for_hydra_keeps_it(word):
    assert quoted([word], PATHS, LABELS) == [word]


def test_comma_in_a_path_is_a_sweep_where_there_is_one_unless_such_a_folder_exists(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert quoted(["data.root=a,b", "-m"], PATHS) == ["data.root=a,b", "-m"]
    Path("a,b").mkdir()
    Path("[x]").mkdir()
    assert quoted(["data.root=a,b", "-m"], PATHS) == ["data.root='a,b'", "-m"]
    assert quoted(["data.root=[x]"], PATHS) == ["data.root='[x]'"]


def test_lists_are_quoted_item_by_item():
    assert read("lists=[test,資料/a.json,~/b c.json]") == ["test", "資料/a.json", "~/b c.json"]
    assert read("labels=[red cube, rött klot]") == ["red cube", "rött klot"]


@pytest.mark.parametrize("text", ["red cube, blue sphere", "röd kub", "it's red", "'red cube", "5"])
def test_labels_are_one_text(text):
    assert read(f"labels={text}") == text


def test_other_settings_may_hold_other_characters_too():
    assert read("name=実験=1") == "実験=1"
    assert quoted(["--config-dir=~/conf"]) == [f"--config-dir={Path.home()}/conf"]
    assert quoted(["-cd", "a=b~"]) == ["-cd", "a=b~"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="$\0", exclude_categories=["Cs"])))
def test_no_text_is_lost(text):
    assume(text != "None")  # which is null
    word = quoted([f"out={text}"], PATHS, LABELS)[0]
    try:
        value = value_of(word)
    except Exception:  # what Hydra cannot hold even in quotes stays as it was
        assert word == f"out={text}"
        return
    assert word == f"out={text}" or value in (text, text.strip(" \t"))


def test_home_is_expanded_and_an_unknown_one_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/a") == str(tmp_path / "a")
    assert expand_home("a/~") == "a/~"
    with pytest.raises(UserError, match=r"~nobody-here/a: there is no such home folder; \./~"):
        expand_home("~nobody-here/a")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with a good data package, weights and a list, in names that need quotes."""
    home = tmp_path / "home, 家"
    good_folder(home / "資料=1")
    monkeypatch.setenv("HOME", str(home))
    return home / "資料=1"


@pytest.mark.parametrize("chdir", ["true", "false"])
def test_commands_take_paths_as_the_shell_hands_them_over(run, home, tmp_path, chdir):
    where = ("data.root=~/資料=1/data", "paths.outputs=~/my runs", f"hydra.job.chdir={chdir}")
    code, _, err = run(train, *SMALL, "data.batch_size=2", *where, "net.labels=film")
    assert code == 2
    assert "net.labels" in err
    code, _, err = run(train, *SMALL, *where, "resume=~/資料=1/run")
    assert code == 2
    assert f"resume: {home}/run/checkpoints/last.ckpt was trained with" in err
    words = ("weights=~/資料=1/weights", "n=1", f"hydra.job.chdir={chdir}", "hydra.run.dir=run dir")
    code, _, err = run(sample, "labels=red cube, gray cube", *words, "out=~/out [1]")
    assert (code, err) == (0, "")
    assert (home.parent / "out [1]" / "grid.png").is_file()
    code, _, err = run(sample, "labels=red cube", *words[:3], "out=drawn, here")
    assert (code, err) == (0, "")
    assert (tmp_path / "drawn, here" / "grid.png").is_file()
    assert not list(tmp_path.rglob("~*"))


def test_evaluate_and_report_take_such_paths_too(run, home, recwarn):
    words = ("weights=~/資料=1/weights", "seeds=1", "reference_frames=0")
    code, _, err = run(evaluate, *words, "lists=[~/資料=1/mine.json]", "out=~/e, f")
    assert code == 0, err
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    figures = json.loads((home.parent / "e, f" / "evaluation.json").read_text())
    assert figures["lists"] == {"mine": f"the file {home}/mine.json"}
    code, _, err = run(report, "~/資料=1/data", "out=~/r")
    assert code == 2
    assert f"{home}/data: no run in that folder" in err


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (train, "data.root=~nobody-here/x"),
        (train, "paths.outputs=~nobody-here"),
        (train, "hydra.run.dir=~nobody-here/x"),
        (sample, "out=~nobody-here/x"),
    ],
)
def test_home_of_nobody_is_refused_in_one_line(run, tmp_path, program, word):
    words = SMALL if program is train else ("labels=red cube",)
    code, _, err = run(program, *words, word)
    assert (code, err.count("\n")) == (2, 1), err
    assert "there is no such home folder" in err
    assert list(tmp_path.iterdir()) == []
