"""A metric is one class: logs, JSON and tables find it by themselves."""

import json

import pytest
import torch

from helpers import RandomFrames, datamodule, tiny_module, trainer
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.evaluation import metrics
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.evaluation_report import markdown
from iclevr_diffusion.evaluation.metrics import ImageMetric, register_metric, shown
from iclevr_diffusion.evaluation.results import Evaluation
from iclevr_diffusion.evaluation.score import score_list, setting_result
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.loggers import MetricsCSV, read_metrics
from iclevr_diffusion.utils.typed_json import read_dataclass, write_dataclass


@pytest.fixture(autouse=True)
def new_metric(monkeypatch):
    monkeypatch.setattr(metrics, "METRICS", metrics.METRICS)
    before = dict(metrics.METRICS)

    @register_metric
    class ShownObjects(ImageMetric):
        """Labels that an image shows."""

        name, title, unit, higher_is_better = "objects", "objects shown", "per image", None
        range, format = (0.0, 24.0), ".2f"

        def measure(self, output, labels):
            return shown(output.scores).sum(), len(labels)

    yield ShownObjects
    metrics.METRICS.clear()
    metrics.METRICS.update(before)


class SeesTwo(Evaluator):
    """Sees the first two labels in every image."""

    name = "sees two"
    num_features = NUM_LABELS
    max_count = 5

    def classify(self, images):
        scores = (torch.arange(NUM_LABELS) < 2).float().expand(len(images), -1)
        return ClassifierOutput(scores, scores.sum(1).long(), scores)


def test_the_training_logs_it(tmp_path):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    callback = Scoring(
        RandomFrames().conditions(), SeesTwo(), Sampler("ddim", 2), Guidance(), 1, tmp_path
    )
    trainer(tmp_path, [callback], logger=logger).fit(tiny_module(), datamodule())
    assert read_metrics(tmp_path / "metrics.csv")[-1]["score/test/objects"] == 2


def test_json_and_table_of_an_evaluation_have_it(tmp_path):
    module = tiny_module()
    pipeline = module.pipeline(module.net.eval(), Sampler("ddim", 2))
    score = score_list(pipeline, SeesTwo(), RandomFrames().conditions()["test"], 2, by_step=False)
    result = setting_result(pipeline, {"test": score})
    evaluation = Evaluation("tiny", SeesTwo.name, {"test": "random"}, 2, [result])
    write_dataclass(tmp_path / "evaluation.json", evaluation)
    lists = json.loads((tmp_path / "evaluation.json").read_text())["settings"][0]["lists"]
    assert lists["test"]["metrics"]["objects"]["per_seed"] == [2, 2]
    assert read_dataclass(Evaluation, tmp_path / "evaluation.json") == evaluation
    table = markdown(evaluation)
    assert "| objects shown per image |" in table
    assert "| 2.00 ± 0.00 |" in table
