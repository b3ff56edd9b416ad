"""Averages of the weights whose length is chosen after the training."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import SMALL_RUN, assert_same, datamodule, folders, tiny_module, trainer
from iclevr_diffusion import evaluate, export, train
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.training.callbacks.ema import averaged_tensors
from iclevr_diffusion.training.callbacks.posthoc_ema import PosthocEMA
from iclevr_diffusion.training.power_ema import (
    Snapshot,
    coefficients,
    exponent,
    find_snapshots,
    reconstruct,
)
from iclevr_diffusion.utils.errors import UserError


def trajectory(updates, seed=0):
    """The values of one weight after each update: a random walk."""
    return np.random.default_rng(seed).normal(size=updates).cumsum() + 3


def average(values, length):
    """The average of its definition, in one sum over all updates."""
    gamma, t = exponent(length), len(values)
    edges = (np.arange(t + 1) / t) ** (gamma + 1)
    return float(np.diff(edges) @ values)


def stored(folder, values, **settings):
    """Let the callback see a weight's values, and store its snapshots."""
    net, callback = nn.Linear(1, 1, bias=False), PosthocEMA(folder, dtype="float32", **settings)
    net = net.double()  # so that rounding does not hide a difference
    callback.averages = [copy.deepcopy(averaged_tensors(net)) for _ in callback.lengths]
    run = trainer(folder)
    for value in values:
        nn.init.constant_(net.weight, value)
        callback.update(net)
        callback.after_update(run)
    return callback


def test_length_is_the_standard_deviation_of_the_profile():
    assert exponent(0.05) == pytest.approx(16.97, abs=5e-3)  # the paper's figures
    assert exponent(0.10) == pytest.approx(6.94, abs=5e-3)
    time = np.linspace(0, 1, 100_001)
    weight = time ** exponent(0.2)
    mean = np.average(time, weights=weight)
    assert np.average((time - mean) ** 2, weights=weight) ** 0.5 == pytest.approx(0.2, abs=1e-4)


def test_tracked_average_is_that_of_the_formula(tmp_path):
    values = trajectory(400)
    callback = stored(tmp_path, values, lengths=[0.05, 0.2])
    for length, tracked in zip(callback.lengths, callback.averages, strict=True):
        assert tracked["weight"].item() == pytest.approx(average(values, length), abs=1e-9)


def test_reconstruction_is_exact_with_a_snapshot_of_every_update(tmp_path):
    values = trajectory(12)
    stored(tmp_path, values, lengths=[0.1], every_n_updates=1)
    for length in (0.02, 0.05, 0.25):
        tensors, error = reconstruct(tmp_path / "ema_snapshots", length)
        assert tensors["weight"].item() == pytest.approx(average(values, length), abs=1e-5)
        assert error < 1e-9


def test_reconstruction_is_close_with_few_snapshots(tmp_path):
    values = trajectory(1000)
    stored(tmp_path, values, every_n_updates=50)
    assert len(find_snapshots(tmp_path / "ema_snapshots")) == 2 * 20
    for length in (0.03, 0.07, 0.15):
        tensors, error = reconstruct(tmp_path / "ema_snapshots", length)
        expected = average(values, length)
        # Much closer to it than to the averages of other lengths.
        assert abs(tensors["weight"].item() - expected) < 0.02 * np.std(values)
        assert error < 0.06


def test_stored_average_is_its_own_reconstruction():
    snapshots = [Snapshot(updates, length) for updates in (50, 100) for length in (0.05, 0.1)]
    weights, error = coefficients(snapshots, 0.1, 100)
    assert weights == pytest.approx([0, 0, 0, 1], abs=1e-9)
    assert error < 1e-9


def test_damaged_or_foreign_snapshot_is_named(tmp_path):
    folder = tmp_path / "ema_snapshots"
    with pytest.raises(UserError, match="no snapshots there; train with callbacks=posthoc_ema"):
        reconstruct(folder, 0.05)
    stored(tmp_path, trajectory(2), lengths=[0.05], every_n_updates=1)
    save_file({"weight": torch.zeros(2, 2)}, folder / "00000002_0.05.safetensors")
    with pytest.raises(UserError, match=r"00000002_0\.05\.safetensors: these weights are not"):
        reconstruct(folder, 0.05)
    (folder / "00000001_0.05.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"00000001_0\.05\.safetensors: damaged snapshot"):
        reconstruct(folder, 0.05)


def test_training_stores_snapshots_of_what_it_trains(tmp_path):
    module, callback = tiny_module(), PosthocEMA(tmp_path, [0.1], every_n_updates=3)
    run = trainer(tmp_path, [callback], limit_train_batches=7, limit_val_batches=0)
    run.fit(module, datamodule())
    assert [one.updates for one in find_snapshots(tmp_path / "ema_snapshots")] == [3, 6, 7]
    newest = load_file(tmp_path / "ema_snapshots" / "00000007_0.1.safetensors")
    assert newest.keys() == averaged_tensors(module.net).keys()
    assert {value.dtype for value in newest.values()} == {torch.float16}


POSTHOC = (
    "callbacks=posthoc_ema",
    "callbacks.posthoc_ema.every_n_updates=2",
    "callbacks.posthoc_ema.dtype=float32",
)


@pytest.mark.slow
def test_length_is_chosen_after_a_run_that_was_resumed(run):
    command = (*SMALL_RUN, *POSTHOC)
    for name, *more in (
        ("calm", "trainer.max_epochs=2"),
        ("resumed", "trainer.max_epochs=1"),
        ("resumed", "trainer.max_epochs=2", "resume=true"),
    ):
        code, _, err = run(train, *command, f"name={name}", *more)
        assert code == 0, err
    (calm,), (resumed,) = folders("calm"), folders("resumed")
    for snapshot in find_snapshots(calm / "ema_snapshots"):
        again = load_file(resumed / "ema_snapshots" / snapshot.path.name)
        assert_same(again, load_file(snapshot.path))

    code, _, err = run(export, f"weights={calm}", "ema_length=.15", "out=exported")
    assert code == 0, err
    tensors, _ = reconstruct(calm / "ema_snapshots", 0.15)
    state = load_model("exported").net.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    assert "ema_length=0.15, the average at the end" in Path("exported/README.md").read_text()

    Path("few.json").write_text('[["red cube"]]')
    few = ("lists=[few.json]", "seeds=1", "reference_frames=0", "out=out")
    code, out, err = run(evaluate, f"weights={calm}", "ema_length=[.1,.15]", *few)
    assert code == 0, err
    figures = json.loads(Path("out/evaluation.json").read_text())
    assert [s["options"]["ema_length"] for s in figures["settings"]] == [0.1, 0.15]
    assert figures["weights_sha256"] == ""  # no file holds these
    assert "| EMA length |" in out

    code, _, err = run(
        train, *command, "name=calm", "callbacks.posthoc_ema.lengths=[.2]", "resume=true"
    )
    assert (code, "trained with posthoc_ema" in err) == (2, True), err
