"""All commands under one name, and how they answer wrong words."""

import sys
from pathlib import Path

import pytest

from helpers import slow
from iclevr_diffusion import __main__ as commands
from iclevr_diffusion import (
    __version__,
    app,
    evaluate,
    export,
    report,
    sample,
    train,
    train_evaluator,
)
from iclevr_diffusion.utils.closest import closest, did_you_mean


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_commands_are_listed(run, words):
    code, out, err = run(commands, *words)
    assert (code, err) == (0, "")
    for name in ("train", "sample", "evaluate", "report", "app", "export", "train_evaluator"):
        assert f"\n  {name} " in out


@pytest.mark.parametrize(
    "program", [commands, train, sample, evaluate, report, app, export, train_evaluator]
)
def test_every_command_says_the_version_of_the_project(run, program):
    code, out, _ = run(program, "--version")
    assert (code, out) == (0, f"iclevr-diffusion {__version__}\n")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trian", "there is no command 'trian'; did you mean train? --help lists them"),
        ("evalute", "there is no command 'evalute'; did you mean evaluate?"),
        ("experiment=best", "there is no command 'experiment=best'"),
    ],
)
def test_a_wrong_command_is_answered_with_the_closest(run, word, line):
    code, _, err = run(commands, word)
    assert code == 2
    assert err.startswith(f"error: {line}")


def test_a_command_is_run_as_its_module_is(run):
    code, out, err = run(commands, "train", "--cfg", "job", "seed=7")
    assert (code, err) == (0, "")
    assert "\nseed: 7\n" in out
    code, _, err = run(commands, "train-evaluator", "net=3")
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "__main__" in sys.modules


@pytest.mark.parametrize(
    ("program", "word", "line"),
    [
        (train, "hydra/launcher=slurm", "there is no such hydra/launcher"),
        (train, "experiment=", "experiment= is empty; choose one of "),
        (train, "net.depth=3", "net.depth: the chosen net has no such setting; choose net=uvit or"),
        (train, "logger.wandb=5", "has no such setting; choose logger=wandb or logger=all"),
        (train, "data.holdout.seed=3", "choose data/holdout=pairs or data/holdout=triples"),
        (train, "published.test=1", "published.test: the chosen option has no such setting; --cfg"),
        (train, "guidance.mode=composed", "choose the option with guidance=composed"),
        (train, "evaluator.checkpont=x", "did you mean evaluator.checkpoint"),
        (
            train,
            "logger=[csv,tensorboad]",
            "no such logger; did you mean tensorboard? There are all",
        ),
        (train, "debug=[fast,limitt]", "there is no such debug; did you mean limit?"),
        (train, "--config-name=lab", "--config-name=lab: there is no such config"),
        (train, "+optimizer.lr=3", "optimizer.lr has a value already: to change it, write"),
        (train, "~trainer.max_epoch", "did you mean trainer.max_epochs?"),
        *slow(
            (train, "lr=1e-3", "there is no setting 'lr'; did you mean optimizer.lr?"),
            (train, "+data=synthetic", "data has a value already: to change it, write data=…"),
            (train, "+x", "'+x' is not a setting: write name=value"),
            (train, "--cfg=jobs", "invalid choice: 'jobs'"),
            (sample, "num_inference_steps=3", "did you mean sampler.steps?"),
            (evaluate, "weigths=x", "did you mean weights?"),
        ),
    ],
)
def test_unknown_words_are_answered_in_one_line(run, program, word, line):
    code, _, err = run(program, word)
    assert code == 2
    assert line in err
    assert err.count("\n") == 1


def test_settings_in_the_users_own_configs_are_suggested(run):
    (Path("mine") / "net").mkdir(parents=True)
    Path("mine/net/cells.yaml").write_text("_target_: cells.Net\ncell_width: 8\n")
    code, _, err = run(train, "--config-dir=mine", "net.cell_widht=3")
    assert code == 2
    assert "did you mean net.cell_width?" in err


def test_help_for_a_sweep_is_refused_in_one_line(run):
    code, _, err = run(train, "-m", "seed=0,1", "--help")
    assert code == 2
    assert err == "error: seed=0,1: --help shows the settings of one run; leave out -m or --help\n"


def test_options_of_the_users_that_have_a_setting_are_named(run):
    (Path("mine") / "net").mkdir(parents=True)
    Path("mine/net/cells.yaml").write_text("_target_: cells.Net\ncell_width: 8\n")
    Path("mine/net/wide_cells.yaml").write_text("defaults: [cells]\n")
    Path("mine/net/far_cells.yaml").write_text("defaults: [wide_cells]\n")
    code, _, err = run(train, "--config-dir=mine", "net.cell_width=3")
    assert code == 2
    assert "choose net=cells, net=far_cells or net=wide_cells" in err


def test_an_added_setting_that_nothing_reads_is_answered_with_the_closest(run):
    code, _, err = run(sample, "labels='red cube'", "+weigths=x")
    assert code == 2
    assert err == "error: weigths: there is no such setting; did you mean weights?\n"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("trainer.max_epoch", ["trainer.max_epochs"]),
        ("MAX_EPOCHS", ["trainer.max_epochs"]),
        ("learning_rate", ["optimizer.lr"]),
        ("optim.lr", ["optimizer.lr"]),
        ("trainer.gpus", ["trainer.devices"]),
        ("xyz", []),
        ("x" * 100_000, []),
        ("", []),
    ],
)
def test_names_are_found_by_spelling_and_by_meaning(name, found):
    names = ["trainer", "trainer.max_epochs", "trainer.devices", "optimizer", "optimizer.lr"]
    assert closest(name, names) == found


def test_several_close_names_are_joined():
    assert (
        did_you_mean("cosine", ["cosine_v", "cosine_w"]) == "; did you mean cosine_v or cosine_w?"
    )
    assert did_you_mean("zzz", ["cosine_v"]) == "."
