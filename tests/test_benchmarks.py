"""Programs in ``benchmarks``, which take too long to be run here as they are meant to be."""

import sys

import pytest
from hydra import compose, initialize_config_dir

from iclevr_diffusion.cli.callback_wiring import build_callbacks
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.schema import Train
from iclevr_diffusion.cli.validate import check_config


@pytest.fixture
def gpu(program):
    return program("gpu")


@pytest.mark.parametrize("rehearse", [False, True])
def test_settings_of_every_part_make_a_training(gpu, rehearse, tmp_path):
    for part in gpu.parts(tmp_path, 240.0, None, rehearse):
        overrides = [word for word in part.command if "=" in word]
        if not overrides:
            continue
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=["experiment=best", *overrides])
        check_config(cfg, Train)
        build_callbacks(cfg, tmp_path, {}, {})


def test_a_part_whose_time_is_over_is_named_with_its_last_words(gpu, tmp_path):
    slow = "import time; print('warming up', flush=True); time.sleep(60)"
    part = gpu.Part("slow", 2.0, tmp_path / "none.json", ["-c", slow])
    result = part.run(left=100.0)
    assert result["failed"] == "stopped: its time was over: warming up"
    assert result["part_seconds"] < 30


def test_figures_of_a_part_are_kept_though_it_fails(gpu, tmp_path):
    figures = tmp_path / "figures.json"
    words = f"open({str(figures)!r}, 'w').write('{{\"ms\": 3}}'); raise SystemExit('no more')"
    result = gpu.Part("half", 60.0, figures, ["-c", words]).run(left=100.0)
    assert (result["ms"], result["failed"]) == (3, "exit code 1: no more")


def test_nothing_is_started_for_a_moment(gpu, tmp_path):
    part = gpu.Part("late", 60.0, tmp_path / "none.json", ["-c", "raise SystemExit(1)"])
    assert part.run(left=1.0) == {"failed": "no time was left"}


@pytest.fixture
def composition(program):
    return program("composition")


def test_trainings_over_held_out_fractions_differ_in_nothing_else(composition, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["composition.py", "--seeds", "2"])
    arguments = composition.parse()
    jobs = list(composition.all_trainings(arguments))
    assert len({job.folder for job in jobs}) == len(jobs) == 4 * 2 * 2
    for job in jobs[:2]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", overrides=composition.settings(arguments, job))
        check_config(cfg, Train)
        assert (cfg.data.holdout.fraction, cfg.trainer.max_steps) == (job.fraction, job.steps)


def test_exact_match_is_plotted_for_each_budget_and_list(composition):
    lists = {"seen": {"exact_match": 0.9}, "held_out": {"exact_match": 0.4}}
    rows = [
        {"fraction": fraction, "steps": steps, "lists": lists}
        for fraction in (0.1, 0.2, 0.1)
        for steps in (400, 1200)
    ]
    (legend,) = composition.plot(rows, "pairs").legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [f"{name}, {n} steps" for n in (400, 1200) for name in ("seen", "held-out")]


def test_held_out_and_seen_sets_are_compared_within_each_training(composition):
    rows = [
        {
            "fraction": 0.1,
            "steps": 400,
            "lists": {
                "seen": {"exact_match": seen, "second_exact_match": 1.0},
                "held_out": {"exact_match": 0.5, "second_exact_match": 0.75},
            },
        }
        for seen in (0.5, 0.75)
    ]
    (row,) = composition.compared(rows)
    assert row["difference"] == "-0.12 (+0.00, -0.25)"
    assert row["held out, second"] == "0.75 (0.75, 0.75)"
