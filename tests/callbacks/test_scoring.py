import pytest
import torch
from PIL import Image
from torch import nn

from helpers import RandomFrames, datamodule, ema_of, tiny_module, trainer
from iclevr_diffusion.callbacks.ema import EMA
from iclevr_diffusion.callbacks.scoring import Scoring
from iclevr_diffusion.diffusion.sampling import Sampler
from iclevr_diffusion.labels import INDEX
from iclevr_diffusion.loggers import MetricsCSV, read_metrics


class RedCubeEverywhere(nn.Module):
    """An evaluator that sees a red cube in every picture, and after it a blue sphere."""

    def forward(self, images):
        scores = torch.zeros(len(images), 24)
        scores[:, INDEX["red cube"]] = 0.9
        scores[:, INDEX["blue sphere"]] = 0.8
        return scores


def scoring(folder, every_n_epochs=1, evaluator=None):
    conditions = RandomFrames().conditions()
    return Scoring(conditions, Sampler("ddim", 2), 1.0, every_n_epochs, folder, evaluator)


@pytest.mark.parametrize(("every", "epochs"), [(1, [0, 1, 2]), (2, [1, 2]), (0, [2])])
def test_grid_is_drawn_every_n_epochs_and_after_the_last(tmp_path, every, epochs):
    run = trainer(tmp_path, [EMA(0.9), scoring(tmp_path, every)], max_epochs=3)
    run.fit(tiny_module(), datamodule())
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == [f"sample_test_{epoch:04d}.png" for epoch in epochs]
    with Image.open(tmp_path / names[-1]) as picture:
        assert picture.width > 3 * 16


def test_last_step_counts_as_the_last_epoch(tmp_path):
    run = trainer(tmp_path, [scoring(tmp_path, 0)], max_steps=3, max_epochs=-1)
    run.fit(tiny_module(), datamodule())
    assert (tmp_path / "sample_test_0000.png").is_file()


def test_accuracy_is_logged_where_an_evaluator_is_given(tmp_path):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    callbacks = [EMA(0.9), scoring(tmp_path, evaluator=RedCubeEverywhere())]
    trainer(tmp_path, callbacks, logger=logger).fit(tiny_module(), datamodule())
    row = read_metrics(tmp_path / "metrics.csv")[-1]
    # red cube: 1 of 1; red cube, blue sphere: 2 of 2; cyan cylinder: 0 of 1
    assert row["score/test/accuracy"] == pytest.approx(3 / 4)


def test_drawing_leaves_the_training_as_it_is(tmp_path):
    weights = []
    for callbacks in ([EMA(0.9)], [EMA(0.9), scoring(tmp_path)]):
        module = tiny_module()
        run = trainer(tmp_path, callbacks, max_epochs=2)
        run.fit(module, datamodule())
        assert not ema_of(run).net.training
        weights.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    assert torch.equal(*weights)


def test_negative_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs"):
        scoring(tmp_path, -1)
