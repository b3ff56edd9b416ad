"""The command ``report`` and what it is made of, on run folders that are built by hand."""

import base64
import hashlib
import json
import os
import re
import shutil
import statistics
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from helpers import SMALL
from iclevr_diffusion import report, train
from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.diffusion.run_summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.evaluation.results import Evaluation, ListResult, SettingResult
from iclevr_diffusion.reporting import charts, tables
from iclevr_diffusion.reporting.comparison import make_report
from iclevr_diffusion.reporting.groups import group_runs
from iclevr_diffusion.reporting.html import to_html
from iclevr_diffusion.reporting.images import embedded
from iclevr_diffusion.reporting.markdown import escape, to_markdown
from iclevr_diffusion.reporting.runs import read_runs
from iclevr_diffusion.reporting.scores import origin_of_lists
from iclevr_diffusion.utils.files import is_used, used_alone
from iclevr_diffusion.utils.statistics import summarize
from iclevr_diffusion.utils.typed_json import write_dataclass

OWN, THEIRS = "our own evaluator (sha256 0123)", "the course's evaluator"
CONFIG = {
    "name": "cosine_eps",
    "seed": 0,
    "schedule": {
        "name": "squaredcos_cap_v2",
        "timesteps": 40,
        "beta_start": 0.0001,
        "beta_end": 0.02,
    },
    "prediction": {"name": "epsilon", "min_snr_gamma": None},
    "sampler": {"name": "ddpm", "steps": 40},
    "guidance": {"scale": 1.0, "label_drop": 0.0},
    "trainer": {"max_epochs": 2, "max_steps": -1},
    "callbacks": {"scoring": {"sampler": {"name": "dpm_solver", "steps": 20}}},
    "paths": {"outputs": "outputs"},
    "resume": False,
    "published": {"report": "3", "test": 0.9583, "new_test": 0.9643},
}


def make_run(folder, status="finished", message="", accuracy=0.9, evaluator=OWN, **config):
    """A run as ``train`` leaves it; a setting of ``config`` replaces that of CONFIG."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | config))
    write_json(folder / "status.json", status=status, message=message, overrides=[])
    rows = ["step,train/loss,val/x0_error,score/test/accuracy"]
    rows += [f"{step},{1 / (step + 1)},,{0.1 * step if step == 3 else ''}" for step in range(4)]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    if status == "finished":
        scores = {
            f"score/{name}/{metric}": value
            for name in TEST_LISTS
            for metric, value in (("accuracy", accuracy), ("exact_match", 0.5), ("extra", 0.25))
        }
        summary = Summary(
            name="cosine_eps",
            seed=0,
            data="synthetic",
            steps=60_000,
            images_seen=7_680_000,
            seconds=7999.0,
            seconds_this_process=5.0,
            parameters=113_700_000,
            flops_forward=31_000_000_000,
            flops_per_training_image=93_000_000_000,
            metrics={},
            evaluator=evaluator,
            machine=Machine("a GPU"),
            weights=PublishedWeights(
                scores,
                sampled_with="dpm_solver 20 steps, guidance 1",
                default_sampling="ddpm 40 steps, guidance 1",
            ),
        )
        write_dataclass(folder / "summary.json", summary)
    image(folder / "images" / "sample_test_0001.png")
    return folder


def evaluated(
    folder, accuracies, evaluator=OWN, sampler="ddpm", steps=40, layout=None, lists=TEST_LISTS
):
    """An evaluation of a run, with one seed for each accuracy."""
    names = ("accuracy", "exact_match", "missing", "extra")
    result = ListResult(32, dict.fromkeys(names, summarize(accuracies)), by_step=[0.1, 0.9])
    name = f"{sampler} {steps} steps, guidance 1" + (f", layout {layout}" if layout else "")
    results = dict.fromkeys(lists, result)
    setting = SettingResult(name, sampler, steps, 1.0, steps, results, layout)
    origins = dict.fromkeys(lists, "the course's")
    evaluation = Evaluation("weights", evaluator, origins, len(accuracies), [setting])
    write_dataclass(folder / "evaluation" / "evaluation.json", evaluation)
    return folder


def change_summary(folder, **changes):
    """Replace values in the summary of a run; ``weights`` is updated."""
    path = folder / "summary.json"
    content = json.loads(path.read_text())
    content["weights"] |= changes.pop("weights", {})
    write_json(path, **content | changes)


def set_overrides(folder, *overrides):
    """Replace the command line of a run."""
    status = json.loads((folder / "status.json").read_text())
    write_json(folder / "status.json", **status | {"overrides": overrides})


def write_json(path, **content):
    path.write_text(json.dumps(content))


def image(path, size=8, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def groups_of(*folders):
    return group_runs(read_runs([str(folder) for folder in folders]))


def row_of(group):
    """The cells of a group in the comparison, by their headings."""
    table = tables.comparison([group])
    headings = [f"{column.group} {column.title}".strip() for column in table.columns]
    return dict(zip(headings, table.rows[0], strict=True))


# Which runs share a row, and the statistics over them.


def test_runs_that_differ_in_the_seed_alone_share_a_row(tmp_path):
    make_run(tmp_path / "a", seed=0, paths={"outputs": "here"})
    make_run(tmp_path / "b", seed=1, paths={"outputs": "there"}, resume=True)
    make_run(tmp_path / "c", seed=0, prediction={"name": "sample", "min_snr_gamma": None})
    first, second = groups_of(tmp_path)
    assert [run.seed for run in first.runs] == ["0", "1"]
    assert (len(second.runs), second.differs) == (1, {"prediction.name": "sample"})


def test_deviation_is_over_the_training_seeds_if_there_are_several(tmp_path):
    for seed, accuracy in enumerate((0.8, 0.85, 0.96)):
        make_run(tmp_path / str(seed), seed=seed, accuracy=accuracy)
    (group,) = groups_of(tmp_path)
    measured = group.measured("test", "accuracy")
    assert measured.mean == pytest.approx(statistics.fmean((0.8, 0.85, 0.96)))
    assert measured.std == pytest.approx(statistics.stdev((0.8, 0.85, 0.96)))
    assert measured.over == "3 training seeds"


def test_each_training_seed_is_averaged_first(tmp_path):
    evaluated(make_run(tmp_path / "0", seed=0), [0.8, 0.9])
    evaluated(make_run(tmp_path / "1", seed=1), [0.6, 0.8])
    (group,) = groups_of(tmp_path)
    measured = group.measured("test", "accuracy")
    assert (measured.mean, measured.std) == pytest.approx((0.775, statistics.stdev((0.85, 0.7))))


def test_deviation_of_one_training_is_over_the_seeds_of_sampling(tmp_path):
    evaluated(make_run(tmp_path / "a"), [0.8, 0.9, 0.7])
    (group,) = groups_of(tmp_path)
    cell = row_of(group)["test accuracy"]
    assert (cell.text, cell.deviation, cell.note) == ("0.8000", "± 0.1000", "3 seeds")


def test_one_seed_has_no_deviation(tmp_path):
    make_run(tmp_path / "a")
    (group,) = groups_of(tmp_path)
    cell = row_of(group)["test accuracy"]
    assert (cell.text, cell.deviation, cell.note) == ("0.9000", "", "1 seed")


def test_evaluation_comes_before_the_scores_of_the_training(tmp_path):
    evaluated(make_run(tmp_path / "a", accuracy=0.5), [0.9, 0.9], THEIRS)
    (group,) = groups_of(tmp_path)
    assert group.measured("test", "accuracy").mean == 0.9
    assert row_of(group)["evaluator"].text == THEIRS
    assert "2 seeds each, ddpm 40 steps, guidance 1" in row_of(group)["evaluator"].note


def test_the_origin_of_the_test_lists_is_shown_if_they_were_sampled(tmp_path):
    for name, lists in (("both", TEST_LISTS), ("others", ("held_out", "seen"))):
        evaluated(make_run(tmp_path / name), [0.9], lists=lists)
        note = row_of(groups_of(tmp_path / name)[0])["evaluator"].note
        assert note.endswith("guidance 1; lists: the course's" if name == "both" else "guidance 1")


def test_factors_of_evaluated_runs_are_averaged_over_the_training_seeds(tmp_path):
    for seed, joint in enumerate((0.4, 0.6)):
        folder = evaluated(make_run(tmp_path / str(seed), seed=seed), [0.9])
        path = folder / "evaluation" / "evaluation.json"
        content = json.loads(path.read_text())
        one = {"mean": joint, "std": None, "interval": None, "per_seed": [joint]}
        content["settings"][0]["lists"]["test"]["factors"] = {"color": one, "joint": one}
        path.write_text(json.dumps(content))
    report = make_report(read_runs([str(tmp_path)]), "")
    (row,) = report.factors.rows
    cells = dict(zip([column.title for column in report.factors.columns], row, strict=True))
    assert (cells["all right"].text, cells["all right"].deviation) == ("0.500", "± 0.141")
    assert cells["product"].text == "–"
    assert "## Factors" in to_markdown(report)
    assert "<h2>Factors</h2>" in to_html(report)


def test_held_out_and_seen_sets_are_compared_and_plotted_over_the_fraction(tmp_path):
    for fraction in (0.4, 0.2):
        for steps in (100, 300):
            folder = tmp_path / f"{fraction}_{steps}"
            trainer = {"max_epochs": -1, "max_steps": steps}
            make_run(folder, data={"holdout": {"fraction": fraction}}, trainer=trainer)
            lists = {"held_out": 1 - fraction, "seen": 0.9}
            scores = {
                f"score/{name}/{metric}": value
                for name, value in lists.items()
                for metric in ("accuracy", "exact_match")
            }
            change_summary(folder, weights={"scores": scores})
    report = make_report(read_runs([str(tmp_path)]), "Composition")
    headings = [f"{column.group} {column.title}" for column in report.holdout.columns]
    column = headings.index("held-out exact match")
    shown = {row[column].text for row in report.holdout.rows}
    assert shown == {"0.6000", "0.8000"}
    assert [key.label for key in report.holdout_keys] == [
        f"cosine_eps (trainer.max_steps={steps})" for steps in (100, 300)
    ]
    assert [chart.title for chart in report.holdout_charts] == [
        "exact match over the fraction, held-out",
        "exact match over the fraction, seen",
    ]
    assert "Held-out compositions" in to_html(report)
    assert "## Held-out compositions" in to_markdown(report)


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("experiment=cosine_eps", "report 3"),
        ("data.root=a/folder", "report 3"),
        ("trainer.max_epochs=3", "report 3"),
        ("schedule=linear", "report 3, other settings"),
        ("+net.width=3", "report 3, other settings"),
        ("data.batch_size=4", "report 3, other settings"),
        ("scale=small", "report 3, other settings"),
    ],
)
def test_published_figure_is_marked_if_the_run_has_other_settings(tmp_path, override, note):
    folder = make_run(tmp_path / "a")
    set_overrides(folder, override)
    (group,) = groups_of(tmp_path)
    assert row_of(group)["test published"].note == note


def test_columns_of_a_list_without_any_figure_are_left_out(tmp_path):
    evaluated(make_run(tmp_path / "a", published=None), [0.9], lists=("held_out", "seen"))
    (group,) = groups_of(tmp_path)
    assert not [heading for heading in row_of(group) if "test" in heading]
    evaluated(tmp_path / "a", [0.9], lists=("test",))
    (group,) = groups_of(tmp_path)
    shown = [heading for heading in row_of(group) if "test" in heading]
    assert shown == ["test accuracy", "test exact match", "test extra objects"]


def test_without_held_out_sets_there_is_no_section_on_them(tmp_path):
    report = make_report(read_runs([str(make_run(tmp_path / "a"))]), "One")
    assert (report.holdout.rows, report.holdout_charts) == ([], [])
    assert "Held-out" not in to_html(report) + to_markdown(report)


def test_layout_is_told_with_the_figures(tmp_path):
    evaluated(make_run(tmp_path / "a"), [0.9, 0.9], layout="data")
    (group,) = groups_of(tmp_path / "a")
    assert "ddpm 40 steps, guidance 1, layout data" in row_of(group)["evaluator"].note


@pytest.mark.parametrize(
    "other",
    [{"evaluator": THEIRS}, {"sampler": "ddim"}, {"steps": 20}, {"layout": "data"}],
)
def test_figures_made_in_different_ways_are_never_averaged(tmp_path, other):
    for seed, how in enumerate(({}, other)):
        folder = evaluated(make_run(tmp_path / str(seed), seed=seed), [0.9], **how)
        (folder / "summary.json").unlink()  # the training's scores could be averaged
    (group,) = groups_of(tmp_path)
    assert len(group.counted) == 2
    assert group.measured("test", "accuracy") is None
    assert row_of(group)["test accuracy"].note == "not averaged"
    assert "not averaged" in row_of(group)["evaluator"].text


def test_scores_of_the_trainings_are_averaged_unless_all_seeds_are_evaluated(tmp_path):
    evaluated(make_run(tmp_path / "0", seed=0, accuracy=0.4), [0.9])
    make_run(tmp_path / "1", seed=1, accuracy=0.6)
    (group,) = groups_of(tmp_path)
    assert group.measured("test", "accuracy").mean == pytest.approx(0.5)


def test_of_a_seed_that_ran_twice_the_newest_counts(tmp_path):
    old, new = make_run(tmp_path / "z", accuracy=0.1), make_run(tmp_path / "a", accuracy=0.9)
    os.utime(old / "summary.json", (1, 1))
    (group,) = groups_of(tmp_path)
    assert [run.folder for run in group.counted] == [new]
    assert row_of(group)["status"].note == "1 not counted"


def test_groups_of_one_name_are_told_apart_by_their_settings(tmp_path):
    for steps in (20, 40):
        make_run(tmp_path / str(steps), sampler={"name": "ddpm", "steps": steps})
    assert [group.label for group in groups_of(tmp_path)] == [
        "cosine_eps (sampler.steps=20)",
        "cosine_eps (sampler.steps=40)",
    ]


def test_runs_are_told_apart_by_the_options_they_chose(tmp_path):
    for index, (name, end) in enumerate([("linear", 0.02), ("sigmoid", 0.01), ("sigmoid", 0.03)]):
        folder = make_run(tmp_path / f"{index}", schedule={"name": name, "beta_end": end})
        set_overrides(folder, f"schedule={name}")
    first, second, third = (tmp_path / f"{index}" for index in range(3))
    assert [group.label for group in groups_of(first, second)] == [
        "cosine_eps (schedule=linear)",
        "cosine_eps (schedule=sigmoid)",
    ]
    assert [group.label for group in groups_of(second, third)] == [
        "cosine_eps (schedule.beta_end=0.01)",
        "cosine_eps (schedule.beta_end=0.03)",
    ]


def test_settings_that_differ_leave_out_names_paths_and_what_was_published(tmp_path):
    make_run(tmp_path / "a", published=None, name="one", paths={"outputs": "here"})
    make_run(tmp_path / "b", guidance={"scale": 2.0, "label_drop": 0.0}, name="two")
    table = tables.settings(groups_of(tmp_path))
    assert [[cell.text for cell in row] for row in table.rows] == [["guidance.scale", "1.0", "2.0"]]


# What a row says.


def test_row_shows_what_was_published_beside_ours_and_what_it_cost(tmp_path):
    make_run(tmp_path / "a")
    (group,) = groups_of(tmp_path)
    row = row_of(group)
    assert (row["test published"].text, row["test published"].note) == ("0.9583", "report 3")
    assert (row["new_test published"].text, row["new_test accuracy"].text) == ("0.9643", "0.9000")
    assert (row["test exact match"].text, row["test extra objects"].text) == ("0.5000", "0.2500")
    assert (row["training images seen"].text, row["parameters"].text) == ("7,680,000", "113.7 M")
    assert (row["FLOPs forward"].text, row["FLOPs training"].text) == ("31.0 G", "714.2 P")
    assert (row["wall time"].text, row["machine"].text) == ("2 h 13 min", "a GPU")


def test_run_without_some_figures_has_a_row(tmp_path):
    folder = make_run(tmp_path / "a", published=None)
    (folder / "status.json").unlink()
    change_summary(folder, flops_per_training_image=None, seconds=None)
    (group,) = groups_of(tmp_path)
    row = row_of(group)
    assert (row["status"].text, row["FLOPs training"].text) == ("finished", "–")
    assert row["wall time"].text == "–"


def test_gan_has_a_row_and_curves(tmp_path):
    none = dict.fromkeys(("schedule", "prediction", "sampler", "guidance"))
    settings = {"net": {"latent": 100}, "callbacks": {"scoring": {}}}
    folder = make_run(tmp_path / "a", name="dcgan", **none, **settings)
    change_summary(folder, weights={"sampled_with": "generator, one pass"})
    (folder / "metrics.csv").write_text("step,train/loss_generator\n0,1.5\n1,1.0\n")
    (group,) = groups_of(tmp_path)
    assert "generator, one pass" in row_of(group)["evaluator"].note
    assert [chart.title for chart in charts.training_charts([group])] == ["generator's loss"]
    assert not charts.distinct_schedules([group])


# Runs that did not end well.


def test_states_are_told_apart(tmp_path):
    make_run(tmp_path / "1", "failed", "the loss is not finite at step 2", seed=1)
    make_run(tmp_path / "2", "stopped", "SIGTERM", seed=2)
    make_run(tmp_path / "3", "running", seed=3)  # and killed
    make_run(tmp_path / "4", "running", seed=4)
    make_run(tmp_path / "5", seed=5)
    with used_alone(tmp_path / "4"):
        (group,) = groups_of(tmp_path)
    states = [run.state for run in group.runs]
    assert states == ["failed", "stopped", "unfinished", "running", "finished"]
    assert [run.seed for run in group.counted] == ["5"]
    table = tables.not_finished(group.runs)
    assert [row[1].text for row in table.rows] == states[:-1]
    assert table.rows[0][-1].text == "the loss is not finite at step 2"
    assert (table.rows[0][2].text, table.rows[0][3].text) == ("4", "2 epochs")
    assert (table.rows[0][4].text, table.rows[0][5].text) == ("0.25", "0.3000")


def test_failed_job_that_left_only_its_status_is_shown(tmp_path):
    make_run(tmp_path / "0_good")
    (tmp_path / "1_bad").mkdir()
    words = ["seed=1", "trainer.precision=17"]
    write_json(tmp_path / "1_bad" / "status.json", status="failed", message="no", overrides=words)
    _, group = groups_of(tmp_path)
    assert (group.label, row_of(group)["status"].text) == ("1_bad", "failed")
    assert row_of(group)["settings that differ"].text == "seed=1, trainer.precision=17"


def test_lock_is_told_and_let_go(tmp_path):
    assert not is_used(tmp_path)
    with used_alone(tmp_path):
        assert is_used(tmp_path)
    assert not is_used(tmp_path)
    with used_alone(tmp_path):
        pass


# Which folders are runs.


def test_runs_are_found_anywhere_below_once_and_in_their_order(tmp_path):
    for number in (10, 2):
        make_run(tmp_path / "sweeps" / "today" / f"{number}_x", seed=number)
    (tmp_path / "link").symlink_to(tmp_path / "sweeps")
    runs = read_runs([str(tmp_path), str(tmp_path / "sweeps" / "today" / "2_x")])
    assert [run.folder.name for run in runs] == ["2_x", "10_x"]


def test_trainings_of_evaluators_are_left_out(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", train_on="both")
    assert [run.folder.name for run in read_runs([str(tmp_path)])] == ["a"]


# Files that are damaged, or meant to harm.

DAMAGES = {
    "config.yaml": (b"", b"\xff\xfe\x00", b"- a\n- b\n", b"a: [", b"name: [1, {}]\nschedule: 7\n"),
    "status.json": (b"", b"[]", b'{"status": 5, "message": [], "overrides": 3}'),
    "summary.json": (b"{", b"[1]", b'{"weights": 3}', b"{" + b'"a":[' * 900),
    "metrics.csv": (b"\xff", b"step,train/loss\nx,y\n", b"a,b\n1,2\n"),
    "evaluation/evaluation.json": (
        b"{}",
        b'{"settings": [{"lists": {"test": []}}]}',
        b"7",
        b"[" * 900 + b"]" * 900,
    ),
    "images/sample_test_0001.png": (b"", b"no image", b"\x89PNG\r\n\x1a\n"),
}


@pytest.fixture
def quick_charts(monkeypatch):
    """Charts take most of a report's time; those who do not look at them leave them out."""
    monkeypatch.setattr(charts, "_draw", lambda draw: "<svg></svg>")


def test_damaged_file_costs_its_run_that_file_and_no_other(tmp_path, run, quick_charts):
    expected = {}
    for file, contents in DAMAGES.items():
        for number, content in enumerate(contents):
            name = f"{file.replace('/', '_')}_{number}"
            folder = evaluated(make_run(f"runs/{name}", name=name), [0.5])
            (folder / file).write_bytes(content)
            expected[str(folder)] = file
    make_run("runs/whole", seed=7)
    code, out, err = run(report, "runs", "out=page")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in Path("page").iterdir()) == ["report.html", "report.md"]
    page = Path("page/report.html").read_text()
    for folder, file in expected.items():
        # A config with odd values is not damaged as a file.
        if "config.yaml_4" not in folder:
            assert re.search(rf"{folder}: .*{file}", out), folder
        assert folder in page or folder.split("/")[-1] in page
    assert "seed 7" in page


def test_yaml_can_run_nothing_and_cannot_grow(tmp_path):
    marker = tmp_path / "marker"
    bad = {
        "tag": f"name: !!python/object/apply:os.system ['touch {marker}']\n",
        "odd": "name: !!bool x\n",
        "alias": "a: &a [1, 2]\nb: [*a, *a]\n",
        "deep": "a: " + "[" * 5_000,
    }
    for name, content in bad.items():
        (make_run(tmp_path / name) / "config.yaml").write_text(content)
    runs = read_runs([str(tmp_path)])
    assert len(runs) == len(bad)
    assert all("not a YAML file of plain values" in run.problems[0] for run in runs)
    assert not marker.exists()


def test_interpolations_of_foreign_configs_are_not_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    make_run(tmp_path / "a", name="${oc.env:SECRET}")
    (group,) = groups_of(tmp_path)
    assert group.label == "${oc.env:SECRET}"


def test_links_out_of_a_run_are_not_followed(tmp_path):
    image(tmp_path / "secret.png")
    folder = make_run(tmp_path / "runs" / "a")
    (folder / "metrics.csv").unlink()
    (folder / "metrics.csv").symlink_to(tmp_path / "secret.png")
    (folder / "images" / "strip.png").symlink_to(tmp_path / "secret.png")
    (run,) = read_runs([str(tmp_path / "runs")])
    assert "strip" not in run.images
    assert len([problem for problem in run.problems if "leads out" in problem]) == 2


# The page.

SCRIPT = "<script>alert(1)</script>"


class Elements(HTMLParser):
    """What a page holds: its elements with their attributes, and the text of each script."""

    def __init__(self, page):
        super().__init__()
        self.found, self.scripts, self._tag = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._tag = tag
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self._tag == "script":
            self.scripts.append(data)
            self._tag = ""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page and the Markdown of runs all of whose texts are meant to harm."""
    runs = tmp_path_factory.mktemp("runs")
    make_run(runs / "a", name=SCRIPT, prediction={"name": f'"{SCRIPT}', SCRIPT: 1})
    evaluated(make_run(runs / "b", seed=1, evaluator=SCRIPT), [0.7, 0.8], f"'>{SCRIPT}")
    make_run(runs / "c", "failed", f"a | b {SCRIPT} ]]> --> \ud800 \u202e", name="a|b")
    linear = CONFIG["schedule"] | {"name": "linear"}
    make_run(runs / "d", schedule=linear, published={"report": SCRIPT, "test": 0.5})
    content = make_report(read_runs([str(runs)]), SCRIPT)
    return to_html(content), to_markdown(content)


@pytest.fixture
def page(written):
    return written[0]


def test_page_escapes_all_text_and_needs_nothing_but_itself(page):
    elements = Elements(page)
    assert SCRIPT not in page
    assert len(elements.scripts) == 1
    tags = {tag for tag, _ in elements.found}
    assert {"table", "img", "svg", "style"} <= tags
    assert not tags & {"link", "iframe", "object", "embed", "base", "form", "audio", "video"}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/webp;base64,", "#")), tag
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_page_lets_the_browser_load_nothing_and_run_its_own_script_alone(page):
    elements = Elements(page)
    (policy,) = (a["content"] for tag, a in elements.found if "http-equiv" in a)
    digest = hashlib.sha256(elements.scripts[0].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "img-src data:;" in policy


def test_page_shows_tables_charts_schedules_and_images(page):
    for heading in ("Comparison", "Runs that did not finish", "Curves", "Schedules", "Images"):
        assert f"<h2>{heading}</h2>" in page
    for text in ("0.9583", "report 3", "linear, T=40", "accuracy by denoising step, test"):
        assert text in page
    assert page.count('<th scope="row"') >= 4
    assert "currentColor" in page


def test_markdown_holds_the_same_table(written):
    _, text = written
    comparison = [line for line in text.splitlines() if line.startswith("|")][: 2 + 4]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in comparison}) == 1
    assert "<script" not in text
    assert "0.9583 (report 3)" in text
    assert "0.7500 ± 0.0707 (2 seeds)" in text


def test_markdown_shows_text_as_it_is():
    assert escape("a|b <i> *c* [d](e) `f`") == (r"a\|b &lt;i&gt; \*c\* \[d\](e) \`f\`")
    assert escape("new_test _x_") == r"new_test \_x\_"


def test_each_schedule_is_plotted_once(tmp_path):
    linear = CONFIG["schedule"] | {"name": "linear"}
    flow = {"_target_": "iclevr_diffusion.diffusion.FlowSchedule", "timesteps": 40}
    foreign = {"_target_": "os.system", "timesteps": 40}
    of_runs = (linear, linear, linear | {"beta_end": 0.5}, {"name": "x"}, flow, foreign)
    for number, schedule in enumerate(of_runs):
        make_run(tmp_path / str(number), name=str(number), schedule=schedule)
    found = charts.distinct_schedules(groups_of(tmp_path))
    names = ["linear, T=40, β 0.0001…0.02", "linear, T=40, β 0.0001…0.5", "flow, T=40"]
    assert list(found) == names


def test_curves_survive_values_that_are_nan_or_huge(tmp_path):
    folder = make_run(tmp_path / "a", "failed")
    rows = "step,train/loss\n0,1e308\n1,-1e308\n2,nan\n3,inf\n4,0\n"
    (folder / "metrics.csv").write_text(rows)
    (chart,) = charts.training_charts(groups_of(tmp_path))
    assert "<svg" in chart.svg


def test_curves_of_different_batches_compare_by_the_images_they_saw(tmp_path):
    settings = {"batch_size": 16}, {"accumulate_grad_batches": 4, "devices": 2}
    make_run(tmp_path / "a", data=settings[0], trainer=settings[1])
    (group,) = groups_of(tmp_path)
    assert group.runs[0].images_per_step == 16 * 4 * 2
    points = charts._metric(group.runs[0], "train/loss")
    assert [x for x, _ in points] == [128 * (row["step"] + 1) for row in group.runs[0].rows]


def test_long_curves_are_thinned_to_means():
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = charts._thinned(points)
    assert len(thin) <= charts.MOST_POINTS
    assert all(y == pytest.approx(0.5, abs=0.02) for _, y in thin)


def test_large_images_are_reduced(tmp_path):
    image(tmp_path / "noise.png", 2000)
    uri, width, height = embedded(tmp_path / "noise.png")
    assert uri.startswith("data:image/webp;base64,")
    assert (width, height) == (1320, 1320)


def test_collapsed_generator_is_named(tmp_path):
    folder = make_run(tmp_path / "a")
    change_summary(folder, weights={"collapsed_lists": ["test", "new_test"]})
    (run,) = read_runs([str(tmp_path)])
    assert run.problems == ["collapsed: its images of test, new_test are all alike"]


@pytest.mark.parametrize(
    ("checksum", "problem"),
    [
        ("another", "of other weights than the run's; evaluate it again"),
        ("", "of an average (ema_length) or of given images, not of the run's weights"),
    ],
)
def test_evaluation_of_other_weights_is_not_shown(tmp_path, checksum, problem):
    folder = evaluated(make_run(tmp_path / "a"), [0.985, 0.985])
    path = folder / "evaluation" / "evaluation.json"
    write_json(path, **json.loads(path.read_text()) | {"weights_sha256": checksum})
    change_summary(folder, weights={"sha256": "those of now"})
    (run,) = read_runs([str(tmp_path)])
    assert run.evaluation is None
    assert run.problems == [f"evaluation/evaluation.json: {problem}"]


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("iclevr", "the course's"),
        ("synthetic", "this project's own"),
        ("shapes", "the data's (shapes)"),
        ("", "the course's"),  # an older summary, of frames in a folder
    ],
)
def test_lists_of_own_data_are_not_called_the_courses(source, origin):
    summary = SimpleNamespace(data="a/folder", data_source=source)
    summary.weights = SimpleNamespace(max_conditions=None)
    assert origin_of_lists(summary) == origin
    summary.weights.max_conditions = 8
    assert origin_of_lists(summary) == f"{origin}, at most 8 conditions of each"


# The command.


@pytest.mark.slow
def test_run_of_the_train_command_is_reported(run):
    assert run(train, "experiment=cosine_eps", *SMALL, "trainer.max_steps=1")[0] == 0
    shutil.rmtree("outputs/cache")
    code, out, err = run(report, "outputs")
    assert (code, err) == (0, "")
    (folder,) = Path("outputs/report").iterdir()
    assert str(folder / "report.html") in out
    text = (folder / "report.md").read_text()
    assert "cosine_eps (seed 0) | finished" in text
    assert "could not be read" not in text


def test_help_has_an_example(run):
    code, out, err = run(report, "--help")
    assert (code, err) == (0, "")
    assert "python -m iclevr_diffusion.report outputs/cosine_eps" in out


def test_debug_shows_the_traceback(run):
    with pytest.raises(report.UserError):
        run(report, "gone", "--debug")
