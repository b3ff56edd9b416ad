"""How programs end."""

import os
import signal
import sys

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from iclevr_diffusion import sample, train, train_evaluator
from iclevr_diffusion.cli.command import FULL_ERROR, INSIDE, _hydra_raises
from iclevr_diffusion.cli.ending import ends_by_signals, user_settings
from iclevr_diffusion.cli.schema import Train
from iclevr_diffusion.cli.validate import find_target
from iclevr_diffusion.training.distributed import are_several
from iclevr_diffusion.utils.errors import Stopped
from iclevr_diffusion.utils.signals import HANG_UP, handling


def test_full_accelerator_ends_in_one_line_with_advice(run, weights_folder, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("iclevr_diffusion.diffusion.pipeline.refuse_nan", too_much)
    code, _, err = run(sample, f"weights={weights_folder}", "labels='red cube'", "n=1", "out=out")
    assert code == 1
    assert err.startswith("error: the accelerator's memory is full: lower data.batch_size")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "cube",
            "'cube' is not a setting: write name=value, and quote a value that has spaces",
        ),
        ("red cube", "'red cube' is not a setting: write name=value"),
        ("größe=3", "'größe=3' is not a setting: write name=value"),
        ("sampler=ddpm", "sampler=… is a choice that this command does not have; set"),
        ("experiment=quickstart", "this command has no experiment; --help lists its settings"),
    ],
)
def test_words_that_are_no_settings_end_in_one_line_with_advice(run, word, line):
    code, _, err = run(sample, "labels='red cube'", word)
    assert code == 2
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "brackets"),
    [
        ("schedule=linear,squaredcos_cap_v2", ""),
        ("logger=tensorboard,wandb", ", or brackets, which make a list"),
        ("seed=1,2", ", or brackets, which make a list"),
    ],
)
def test_brackets_are_advised_only_where_they_make_a_list(run, word, brackets):
    line = f"error: {word}: several values need -m, which runs each{brackets}\n"
    assert run(train, word)[2] == line


def test_the_advice_names_a_setting_of_the_group(run):
    assert "such as guidance.mode=…" in run(sample, "labels='red cube'", "guidance=composed")[2]
    assert "such as net.kind=…" in run(train_evaluator, "net=uvit")[2]


@pytest.fixture
def compositions(monkeypatch):
    """Of each composition of a config its overrides."""
    made, compose = [], ConfigLoaderImpl._load_configuration_impl

    def counted(self, **settings):
        made.append(settings["overrides"])
        return compose(self, **settings)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    return made


@pytest.mark.parametrize("mode", [(), ("hydra.mode=RUN",)])
def test_config_of_a_run_is_composed_once(run, compositions, mode):
    code, _, err = run(sample, "labels='red cub'", *mode)
    assert (code, err.count("\n")) == (2, 1), err
    assert "red cub" in err
    assert len(compositions) == 1


@pytest.mark.parametrize(("seeds", "jobs"), [("a", 1), ("a,b", 2)])
def test_users_own_config_may_say_that_it_is_a_sweep(run, tmp_path, seeds, jobs):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    code, _, err = run(train, "--config-dir=own", "experiment=mine", f"seed={seeds}")
    assert code == 2
    assert [line[:15] for line in err.splitlines()] == [f"error in job {i} " for i in range(jobs)]


@pytest.mark.parametrize(
    ("devices", "nodes", "several"),
    [
        (1, 1, False),
        ("1", 1, False),
        ([3], 1, False),
        (1, 2, True),
        (2, 1, True),
        ("2", 1, True),
        ([0, 1], 1, True),
        ("auto", 1, True),
        (-1, 1, True),
    ],
)
def test_one_device_is_told_from_several(devices, nodes, several):
    assert are_several(devices, nodes) is several


@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_processes_that_a_command_starts_show_tracebacks_if_it_does(monkeypatch, flags):
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    with _hydra_raises(Train):
        environment = {name: os.environ[name] for name in (INSIDE, FULL_ERROR)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with _hydra_raises(Train) as debug:
        assert debug is bool(flags)


@pytest.mark.parametrize("signum", [signal.SIGTERM, *HANG_UP])
def test_a_signal_ends_a_command_with_a_line(signum):
    before = signal.signal(signum, signal.SIG_DFL)
    try:
        with pytest.raises(Stopped, match=signal.Signals(signum).name), ends_by_signals():
            os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) is signal.SIG_DFL
    finally:
        signal.signal(signum, before)


def test_a_type_error_is_no_mistake_in_the_settings():
    with pytest.raises(TypeError), user_settings():
        len(None)


def test_a_signal_is_not_reported_as_an_error_of_the_module_it_interrupts(tmp_path, monkeypatch):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    (tmp_path / "slow_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with (
        handling([signal.SIGTERM], signal.SIG_DFL),
        pytest.raises(Stopped, match="SIGTERM"),
        ends_by_signals(),
    ):
        find_target("slow_module.Net", "net")
