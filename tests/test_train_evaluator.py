"""The command ``train_evaluator``, and the evaluator that is in the package."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from iclevr_diffusion import evaluate, train_evaluator
from iclevr_diffusion.data import evaluator_datamodule
from iclevr_diffusion.data.iclevr.decode import decode_frame
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.data.synthetic.dataset import empty_floors, synthetic_frames
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.evaluation.classifier import (
    PACKAGED,
    PACKAGED_SECOND,
    load_evaluator,
    load_second_evaluator,
)
from iclevr_diffusion.evaluation.evaluator_report import (
    evaluate_classifier,
    noise_like,
    with_a_wrong_label,
)
from iclevr_diffusion.training.loggers import read_metrics

SMALL = (
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "net.widths=[4,4,8]",
    "net.hidden=8",
    "data.sequences=4",
    "data.unclear.sequences=3",
    "data.unclear.corrupted=3",
    "data.batch_size=4",
)


@pytest.fixture(autouse=True)
def few_held_out_frames(monkeypatch):
    monkeypatch.setattr(evaluator_datamodule, "HELD_OUT_SEQUENCES", 3)
    monkeypatch.setattr(evaluator_datamodule, "HELD_OUT_CORRUPTED", 3)


def run_folder():
    (folder,) = Path("outputs/evaluator").iterdir()
    return folder


def test_evaluator_is_made_and_scores(run, weights_folder):
    code, out, err = run(train_evaluator, *SMALL, "trainer.max_epochs=2")
    assert code == 0, err
    folder = run_folder()
    figures = json.loads((folder / "evaluator.json").read_text())
    assert (figures["train_on"], figures["frames"], figures["epochs"]) == ("synthetic", 30, 2)
    assert {name: held["frames"] for name, held in figures["held_out"].items()} == {
        "synthetic": 9,
        "crowded": 6,
        "augmented": 9,
        "noise": 9,
        "wrong label": 9,
    }
    assert figures["held_out_unclear"].keys() == {"shapes in between"}
    assert len(read_metrics(folder / "metrics.csv")) == 14
    with Image.open(folder / "mistakes_crowded.png") as image:
        assert image.width > 64
    assert "mistakes_crowded.png" in out
    Path("few.json").write_text('[["red cube"]]')
    weights = f"evaluator.checkpoint={folder / 'evaluator.safetensors'}"
    code, _, err = run(
        evaluate, f"weights={weights_folder}", "out=out", "seeds=1", "lists=[few.json]", weights
    )
    assert code == 0, err
    assert (
        "evaluator.safetensors" in json.loads(Path("out/evaluation.json").read_text())["evaluator"]
    )


@pytest.mark.slow
def test_resumed_training_ends_with_the_same_weights(run):
    arguments = (*SMALL, "optimizer.decay=constant")
    assert run(train_evaluator, *arguments, "trainer.max_epochs=2")[0] == 0
    unbroken = (run_folder() / "evaluator.safetensors").read_bytes()
    assert run(train_evaluator, *arguments, "name=again", "trainer.max_epochs=1")[0] == 0
    again = ("name=again", "trainer.max_epochs=2", "resume=true")
    assert run(train_evaluator, *arguments, *again)[0] == 0
    (resumed,) = Path("outputs/again").iterdir()
    assert (resumed / "evaluator.safetensors").read_bytes() == unbroken
    code, out, err = run(train_evaluator, *arguments, *again)
    assert code == 0, err
    assert "this run is finished: 14 steps" in out
    (resumed / "evaluator.json").unlink()  # as if it had been killed before it wrote that
    code, _, err = run(train_evaluator, *arguments, *again)
    assert code == 0, err
    assert json.loads((resumed / "evaluator.json").read_text())["steps"] == 14


def test_packaged_evaluator_is_small():
    assert PACKAGED.stat().st_size <= 6e6


@pytest.mark.slow
def test_packaged_evaluator_reads_fresh_frames_and_not_noise():
    evaluator = load_evaluator(None)
    frames = synthetic_frames(100, seed=12345)
    figures = evaluate_classifier(evaluator, frames)
    assert figures["accuracy"] >= 0.99
    assert figures["count_accuracy"] >= 0.99
    assert evaluate_classifier(evaluator, noise_like(frames))["accuracy"] < 0.2
    assert evaluate_classifier(evaluator, with_a_wrong_label(frames))["exact_match"] <= 0.01
    empty = evaluate_classifier(evaluator, empty_floors(20, seed=12345))
    assert (empty["exact_match"], empty["count_accuracy"]) == (1, 1)


def test_packaged_evaluator_counts_two_of_one_label():
    frames = synthetic_frames(100, seed=12345, max_objects=3, distinct=False)
    doubled = (frames.labels > 1).any(1)
    assert 10 < doubled.sum() < 100
    reading = load_evaluator(None)(to_unit_range(frames.images[doubled]))
    assert (reading.counts == frames.labels[doubled].sum(1)).float().mean() > 0.95


def test_packaged_evaluator_reads_real_full_size_frames_of_one_to_five_objects(shared_data):
    folder = shared_data / "full_size"
    evaluator = load_evaluator(None)
    for name, labels in json.loads((folder / "labels.json").read_text()).items():
        image = torch.tensor(decode_frame(folder / name, 64))[None]
        scores, counts, *_ = evaluator(to_unit_range(image))
        assert set(ICLEVR_LABELS.decode(scores[0])) == set(labels)
        assert counts.tolist() == [len(labels)]


def test_second_evaluator_reads_real_full_size_frames_and_counts_to_three(shared_data):
    folder = shared_data / "full_size"
    evaluator = load_second_evaluator()
    for name, labels in json.loads((folder / "labels.json").read_text()).items():
        reading = evaluator(to_unit_range(torch.tensor(decode_frame(folder / name, 64))[None]))
        assert set(ICLEVR_LABELS.decode(reading.scores[0])) == set(labels)
        assert reading.counts.tolist() == [min(3, len(labels))]
        assert reading.unclear is None


def test_second_evaluator_is_small():
    assert PACKAGED_SECOND.stat().st_size <= 3e6
