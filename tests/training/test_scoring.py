import multiprocessing
from datetime import timedelta

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image

from helpers import PixelReader, RandomFrames, datamodule, ema_of, slow, tiny_module, trainer
from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.limits import Limits
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.loggers import MetricsCSV, read_metrics

TITLE = 30  # pixels that two lines above a grid take


class Scripted(Evaluator):
    """Sees in every image what the script says, one line a call; the last line lasts."""

    name = "the script"
    num_features = NUM_LABELS
    max_count = 24

    def __init__(self, *script):
        super().__init__()
        self.script = [ICLEVR_LABELS.encode(line) for line in script]

    def classify(self, images):
        line = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        scores = line.expand(len(images), -1)
        return ClassifierOutput(scores, scores.sum(1).long(), scores)


def scoring(folder, every_n_epochs=1, evaluator=None, conditions=None, best=None):
    return Scoring(
        conditions or RandomFrames().conditions(),
        evaluator or Scripted("red cube"),
        Sampler("ddim", 2),
        Guidance(),
        every_n_epochs,
        folder,
        best,
    )


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(("every", "epochs"), [(2, [1, 2]), *slow((1, [0, 1, 2]), (0, [2]))])
def test_grid_is_sampled_every_n_epochs_and_after_the_last(tmp_path, every, epochs):
    run = trainer(tmp_path, [EMA(0.9), scoring(tmp_path, every)], max_epochs=3)
    run.fit(tiny_module(), datamodule())
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"sample_test_{epoch:04d}.png" for epoch in epochs]
    assert pixels_of(tmp_path / names[-1]).shape[1] > 3 * 16


def test_last_step_counts_as_the_last_epoch(tmp_path):
    run = trainer(tmp_path, [Limits(3), scoring(tmp_path, 0)], max_epochs=-1)
    run.fit(tiny_module(), datamodule())
    assert (tmp_path / "sample_test_0000.png").is_file()


def test_the_same_network_samples_the_same_grid_in_each_epoch(tmp_path):
    run = trainer(tmp_path, [scoring(tmp_path, evaluator=PixelReader())], max_epochs=2)
    run.fit(tiny_module(lr=1e-30, weight_decay=0.0), datamodule())
    grids = [pixels_of(tmp_path / f"sample_test_{epoch:04d}.png") for epoch in (0, 1)]
    first, second = (grid[TITLE:, : 3 * 34] for grid in grids)
    assert np.array_equal(first, second)
    assert not np.array_equal(first[:32, 2:34], first[:32, 36:68])  # two images, two noises


def test_all_measures_of_every_list_are_logged(tmp_path):
    conditions = RandomFrames().conditions() | {"mine": [("red cube", "blue sphere")]}
    logger = MetricsCSV(tmp_path / "metrics.csv")
    callback = scoring(tmp_path, evaluator=Scripted("red cube, blue sphere"), conditions=conditions)
    trainer(tmp_path, [EMA(0.9), callback], logger=logger).fit(tiny_module(), datamodule())
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    # Asked for: red cube; red cube and blue sphere; cyan cylinder.
    expected = {
        "accuracy": 3 / 4,
        "image_accuracy": 2 / 3,
        "exact_match": 1 / 3,
        "missing": 1 / 3,
        "extra": 3 / 3,
        "count_accuracy": 1 / 3,
    }
    for measure, value in expected.items():
        assert row[f"score/test/{measure}"] == pytest.approx(value)
        assert row[f"score/mine/{measure}"] == float(measure not in ("missing", "extra"))
    assert len([name for name in row if name.startswith("score/")]) == 12


RIGHT, WRONG, EXTRA = "red cube", "blue cube", "red cube, yellow cylinder"


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        ([RIGHT, RIGHT, WRONG], 1),  # on ties, the later one
        *slow(([RIGHT, EXTRA, WRONG], 0)),  # the accuracy of both is 1
        *slow(([WRONG, RIGHT, WRONG], 1), ([RIGHT, WRONG, WRONG], 0), ([WRONG, WRONG, WRONG], 2)),
    ],
)
def test_the_best_checkpoint_by_the_validation_list_is_kept(tmp_path, script, kept):
    conditions = {"test": [(RIGHT,)], "validation": [(RIGHT,)]}
    # The test list says the opposite, and has no say.
    opposite = {RIGHT: WRONG, WRONG: RIGHT, EXTRA: RIGHT}
    lines = [line for epoch in script for line in (opposite[epoch], epoch)]
    best = tmp_path / "best.ckpt"
    callback = scoring(tmp_path, 1, Scripted(*lines), conditions, best)
    trainer(tmp_path, [callback], max_epochs=3).fit(tiny_module(), datamodule())
    assert torch.load(best, weights_only=True)["epoch"] == kept
    assert callback.best_scores.get("score/validation/accuracy", 0.0) == float(RIGHT in script)


@pytest.mark.slow
def test_only_scored_epochs_can_be_the_best(tmp_path):
    best = tmp_path / "best.ckpt"
    callback = scoring(tmp_path, 2, Scripted(RIGHT, WRONG), {"validation": [(RIGHT,)]}, best)
    trainer(tmp_path, [callback], max_epochs=3).fit(tiny_module(), datamodule())
    assert torch.load(best, weights_only=True)["epoch"] == 1


def test_scores_of_another_layout_do_not_compare(tmp_path):
    clear, data = scoring(tmp_path), scoring(tmp_path)
    data.layout = "data"
    clear.best_scores = {"score/validation/accuracy": 1.0}
    before = scoring(tmp_path)
    before.load_state_dict(clear.state_dict())
    assert before.best_scores == clear.best_scores
    data.load_state_dict(clear.state_dict())
    assert data.best_scores == {}


def test_resumed_run_keeps_a_checkpoint_that_was_better(tmp_path):
    best, last = tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    for epochs, line, checkpoint in ((1, RIGHT, None), (2, WRONG, last)):
        callback = scoring(tmp_path, 1, Scripted(line), {"validation": [(RIGHT,)]}, best)
        run = trainer(tmp_path, [callback], max_epochs=epochs)
        run.fit(tiny_module(), datamodule(), ckpt_path=checkpoint, weights_only=True)
        run.save_checkpoint(last)
    assert run.current_epoch == 2
    assert torch.load(best, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    ("name", "best"), [("validation", None), ("test", "best.ckpt"), ("new_test", "best.ckpt")]
)
def test_no_best_checkpoint_without_its_place_or_the_validation_list(tmp_path, name, best):
    place = best and tmp_path / best
    callback = scoring(tmp_path, conditions={name: [(RIGHT,)]}, best=place)
    trainer(tmp_path, [callback]).fit(tiny_module(), datamodule())
    assert list(tmp_path.glob("*.png"))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_sampling_leaves_the_training_as_it_is(tmp_path):
    weights, random_states = [], []
    for callbacks in ([EMA(0.9)], [EMA(0.9), scoring(tmp_path, best=tmp_path / "best.ckpt")]):
        module = tiny_module()
        run = trainer(tmp_path, callbacks, max_epochs=2)
        run.fit(module, datamodule())
        assert not ema_of(run).net.training
        weights.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
        random_states.append(torch.random.get_rng_state())
    assert torch.equal(*weights)
    assert torch.equal(*random_states)


UNEVEN = {
    "validation": [("red cube",), ("red cube", "blue sphere"), ("cyan cylinder", "gray cube")],
    "single": [("green sphere", "red cube")],
}


def score_without_learning(folder, **settings):
    module = tiny_module(lr=1e-30, weight_decay=0.0)
    with torch.no_grad():
        for parameter in module.parameters():  # it begins with zeros that hide the labels
            parameter += 0.05 * torch.randn_like(parameter)
    callback = scoring(folder, 1, PixelReader(), UNEVEN, folder / "best.ckpt")
    run = trainer(
        folder,
        [EMA(0.9), callback],
        logger=MetricsCSV(folder / "metrics.csv"),
        limit_train_batches=1,
        **settings,
    )
    run.fit(module, datamodule())


def score_in_two(folder):
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=120))
    try:
        score_without_learning(folder, devices=2, strategy=strategy)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_sample_and_score_as_one(tmp_path, monkeypatch):
    alone, first, second = (tmp_path / name for name in ("alone", "first", "second"))
    score_without_learning(alone)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    other = multiprocessing.get_context("spawn").Process(target=score_in_two, args=(second,))
    other.start()
    monkeypatch.setenv("LOCAL_RANK", "0")
    score_in_two(first)
    other.join(timeout=60)
    assert other.exitcode == 0

    expected, rows = (read_metrics(folder / "metrics.csv")[-1] for folder in (alone, first))
    scores = {name: value for name, value in expected.items() if name.startswith("score/")}
    assert len(scores) == 2 * 6
    assert {name: rows[name] for name in scores} == pytest.approx(scores)
    assert 0 < scores["score/validation/accuracy"] < 1
    for name in UNEVEN:
        grids = [pixels_of(folder / f"sample_{name}_0000.png") for folder in (alone, first)]
        # An image's last digits depend on how many are drawn at once.
        assert np.abs(grids[0] - grids[1]).max() <= 1
    assert (first / "best.ckpt").is_file()
    assert not list(second.rglob("*.*"))  # the second process writes nothing


def test_scores_of_other_conditions_or_guidance_are_not_compared(tmp_path):
    def method(guidance=None, most=None):
        lists = RandomFrames().conditions()
        sampler, reader = Sampler("ddim", 2), PixelReader()
        callback = Scoring(lists, reader, sampler, guidance, 0, tmp_path, max_conditions=most)
        return callback.state_dict()["generated_and_scored_by"]

    guidances = [Guidance(2), Guidance(2, min_noise=4.0), Guidance(2, max_noise=4.0)]
    guidances.append(Guidance(2, rescale=1))
    methods = [method(), method(most=2), method(most=1), *map(method, guidances)]
    assert len({repr(entry) for entry in methods}) == len(methods)
