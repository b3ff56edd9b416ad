"""Log an evaluation to the W&B run of the training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.evaluation.evaluation_report import measured_metrics
from iclevr_diffusion.evaluation.list_score import ListScore
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.training.loggers.scored_images import ScoredImages
from iclevr_diffusion.training.loggers.wandb_run import WandbRun

PREFIX = "evaluate"


def log_list_scores(run: WandbRun, pipeline: Pipeline, scores: Mapping[str, ListScore]) -> None:
    """Log a table of the images of each condition list, of the first seed."""
    for name, score in scores.items():
        scored = ScoredImages(score.images, score.conditions, score.shown)
        run.log_scored_images(f"{PREFIX}/{pipeline.folder}/table_{name}", scored)


def log_evaluation(
    run: WandbRun, evaluation: Evaluation, images: Sequence[Path], out: Path
) -> None:
    """Log the results of an evaluation.

    Its figures are a table with a row for each list and setting, and, if there is one setting,
    values of the run: ``evaluate/<list>/<metric>``. Images are logged, too, and ``evaluation.json``
    as an artifact.
    """
    columns, rows = figures(evaluation)
    run.log_rows(f"{PREFIX}/results", columns, rows)
    if len(evaluation.settings) == 1:
        run.log_summary(
            {
                f"{PREFIX}/{name}/{metric}": values.mean
                for name, result in evaluation.settings[0].lists.items()
                for metric, values in result.metrics.items()
            }
        )
    for path in images:
        if path.suffix != ".png":  # a folder of images, or the course's report
            continue
        with Image.open(path) as image:
            key = path.relative_to(out).with_suffix("").as_posix()
            run.log_image(f"{PREFIX}/{key}", [image.copy()])
    about = {"weights_sha256": evaluation.weights_sha256, "seeds": evaluation.seeds}
    run.log_files("evaluation", [out / EVALUATION, out / "evaluation.md"], metadata=about)


def figures(evaluation: Evaluation) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table: of each list and setting, means over the seeds."""
    metrics = measured_metrics(evaluation)
    columns = ["list", "setting", "network calls", "conditions", *metrics]
    rows = []
    for setting, name, result in evaluation.results():
        calls = float(setting.calls_for(name))
        means = [result.metrics[key].mean if key in result.metrics else None for key in metrics]
        rows.append([name, setting.name, calls, result.conditions, *means])
    return columns, rows
