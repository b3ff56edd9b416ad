"""The images that the course asks for, and a report to start from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.evaluation.classifier import COURSE_EVALUATOR
from iclevr_diffusion.evaluation.evaluation_report import seeds_text, table
from iclevr_diffusion.evaluation.image_grid import Strip, grid, save_image
from iclevr_diffusion.evaluation.list_score import ListScore
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.evaluation.results import Evaluation, ListResult
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.pixels import to_arrays

REPORT = "report.md"
STRIP_LABELS: LabelSet = ("red sphere", "cyan cylinder", "cyan cube")
STRIP_FRAMES = 10
IN_A_ROW = 8
SHOWN = ("accuracy", "exact_match", "count_accuracy", "extra")


def save_course_report(
    folder: Path,
    pipeline: Pipeline,
    scores: Mapping[str, ListScore],
    evaluation: Evaluation,
    facts: Mapping[str, str],
) -> list[Path]:
    """Save images one by one, as grids, a denoising strip, and a report.

    ``images/<list>/0.png`` and so on are in the order of the list, and so is the grid, which has
    eight images in a row. The strip shows the denoising of one image of :data:`STRIP_LABELS`.

    Args:
        folder: For the files.
        pipeline: Samples the strip.
        scores: By condition list, of the images to save: of the first seed, rounded to uint8.
        evaluation: The evaluation of ``pipeline``; its last setting is reported.
        facts: Facts about the network and its training, for the report.

    Returns:
        What was saved; the folder of a list stands for its images.
    """
    images = folder / "images"
    paths: list[Path] = []
    for name, score in scores.items():
        for index, pixels in enumerate(to_arrays(score.images)):
            save_image(Image.fromarray(pixels), images / name / f"{index}.png")
        paths.append(images / name)
        sheet = grid(score.images, columns=IN_A_ROW, zoom=1)
        paths.append(save_image(sheet, images / f"grid_{name}.png"))
    strip = Strip(pipeline.steps, STRIP_FRAMES, images=1)
    pipeline.generate(STRIP_LABELS, on_step=strip)
    paths.append(save_image(strip.image(), images / "denoising.png"))
    write_text(folder / REPORT, report(pipeline, scores, evaluation, facts))
    return [*paths, folder / REPORT]


def report(
    pipeline: Pipeline,
    scores: Mapping[str, ListScore],
    evaluation: Evaluation,
    facts: Mapping[str, str],
) -> str:
    """Format the report as Markdown: settings, scores, images, caveats."""
    results = evaluation.settings[-1].lists
    lines = [
        "# Conditional image generation on i-CLEVR",
        "",
        "## Model and settings",
        "",
        *table(["", ""], [[key, value] for key, value in facts.items()]),
        "",
        "## Scores",
        "",
        f"Classified by {evaluation.evaluator}."
        f" {seeds_text(evaluation.seeds, with_interval=False)}",
        "",
        *_scores_table(scores, results, evaluation),
        "",
        "## Images",
        "",
    ]
    for name in scores:
        lines += [f"`{name}`, in the order of the list:", "", f"![{name}](images/grid_{name}.png)"]
        lines.append("")
    lines += [
        f"Denoising of an image of *{', '.join(STRIP_LABELS)}* in {pipeline.steps} steps. Above:"
        " the noisy image x_t. Below: the estimate of x_0.",
        "",
        "![denoising](images/denoising.png)",
        "",
        "## How far these figures can be trusted",
        "",
        *(f"- {caveat}" for caveat in caveats(scores, evaluation)),
    ]
    return "\n".join(lines) + "\n"


def caveats(scores: Mapping[str, ListScore], evaluation: Evaluation) -> Sequence[str]:
    """Return what limits a comparison of the scores with others."""
    result = []
    if not evaluation.evaluator.startswith(COURSE_EVALUATOR):
        result.append(
            "These scores are not the course's: they are by another evaluator, and scores of two"
            " evaluators cannot be compared. `evaluator.checkpoint=checkpoint.pth` uses the"
            " course's."
        )
    own = [name for name in scores if name in TEST_LISTS and "course" not in evaluation.lists[name]]
    if own:
        result.append(
            f"The conditions of {' and '.join(own)} are this project's, not the course's:"
            " `data.root=…` uses the course's."
        )
    if evaluation.weights == "pretrained":
        result.append("The weights come with the package; you did not train them.")
    if evaluation.trained_on.get("source") == "synthetic":
        result.append("The weights were trained on synthetic frames, not on the course's.")
    labels = {name: sum(map(len, score.conditions)) for name, score in scores.items()}
    result += [
        "The saved images are those of the first seed. Their scores are those of the files, since"
        " rounding to 8 bits can move a score across one half. One label more or less is "
        + ", ".join(f"{100 / count:.1f} points on {name}" for name, count in labels.items())
        + ", so a small difference between models only shows with several seeds.",
        "The standard deviation covers the variation from sampling noise, with the same weights."
        " Another training with the same settings gives other scores, too.",
        "If you chose the seed, the checkpoint or the guidance scale by these lists, the scores are"
        " too high; choose by `lists=[validation]`.",
        "Accuracy does not penalize extra objects; exact match does. Blurred or ragged shapes can"
        " score well: look at the images.",
    ]
    return result


def _scores_table(
    scores: Mapping[str, ListScore], results: Mapping[str, ListResult], evaluation: Evaluation
) -> list[str]:
    """Tabulate the scores of the saved images, and over all seeds."""
    names = [name for name in SHOWN if any(name in r.metrics for r in results.values())]
    columns = ["list", "images", *(METRICS[name].heading() for name in names)]
    with_second = any(result.second_evaluator for result in results.values())
    if with_second:
        columns.append("exact match, second evaluator")
    rows = []
    for name, score in scores.items():
        first = [f"{score.per_seed[0][m]:.4f}" if m in score.per_seed[0] else "-" for m in names]
        if with_second:
            first.append(f"{score.second_per_seed[0]['exact_match']:.4f}")
        rows.append([name, "saved images", *first])
        if evaluation.seeds > 1:
            rows.append([name, f"{evaluation.seeds} seeds", *_means(results[name], names)])
    return table(columns, rows)


def _means(result: ListResult, names: Sequence[str]) -> list[str]:
    values = [result.metrics.get(name) for name in names]
    if result.second_evaluator:
        values.append(result.second_evaluator["exact_match"])
    return [
        "-" if value is None else f"{value.mean:.4f} ± {value.std or 0:.4f}" for value in values
    ]
