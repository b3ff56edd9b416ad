"""Which weights a path stands for, and what is read with them."""

import os

import pytest

from helpers import SMALL, folders
from iclevr_diffusion import train
from iclevr_diffusion.cli.run_dir import new_or_latest
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.weights_path import find_weights

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def make(run, *files, started=None):
    for seconds, name in enumerate(files, 1000):
        path = run / ("weights/unet/config.json" if name == "weights" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if name == "weights":
            path = path.with_name("diffusion_pytorch_model.safetensors")
            path.touch()
        os.utime(path, (seconds, seconds))
    if started is not None:
        (run / "config.yaml").touch()
        os.utime(run / "config.yaml", (started, started))
    return run


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([LAST], LAST),
        ([LAST, BEST], BEST),
        ([LAST, BEST, "weights"], "weights"),
        (["weights", LAST, BEST], BEST),  # it went on, and got better, and was stopped
    ],
)
def test_a_run_stands_for_the_newest_of_its_best_weights(tmp_path, files, found):
    run = make(tmp_path / "run", *files)
    assert find_weights(run) == find_weights(tmp_path) == run / found


def test_of_several_runs_the_last_one_started_counts_as_for_resume(tmp_path):
    make(tmp_path / "2026-01-01", LAST, started=3)
    newest = make(tmp_path / "job_1000", LAST, started=9)
    make(tmp_path / "job_999", LAST, started=5)
    assert find_weights(tmp_path) == newest / LAST
    assert new_or_latest(str(tmp_path), True) == str(newest)


def test_a_checkpoint_is_drawn_with_as_its_run_says(run):
    settings = ("sampler.name=ddim", "sampler.steps=7", "trainer.max_steps=1")
    code, _, err = run(train, "experiment=cosine_eps", *SMALL, *settings)
    assert code == 0, err
    (folder,) = folders("cosine_eps")
    for path in (folder / "weights", folder / LAST):
        assert str(load_model(path).pipeline()) == "ddim 7 steps, guidance 1"
        with pytest.raises(ValueError, match="trained with dropped labels"):
            load_model(path).pipeline(guidance_scale=2.0)
