"""Score pipelines on condition lists, and save the results."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iclevr_diffusion.data.labels import ICLEVR_LABELS, LabelSet
from iclevr_diffusion.data.types import Frames, Source, to_unit_range
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.evaluation.classifier import Evaluator, classify_frames
from iclevr_diffusion.evaluation.course_report import save_course_report
from iclevr_diffusion.evaluation.evaluation_images import save_accuracy_plot, save_images
from iclevr_diffusion.evaluation.evaluation_report import markdown
from iclevr_diffusion.evaluation.factor_tables import factor_tables
from iclevr_diffusion.evaluation.fidelity import (
    MIN_SEQUENCES,
    held_out_sequences,
    pipeline_fidelity,
)
from iclevr_diffusion.evaluation.image_grid import Strip
from iclevr_diffusion.evaluation.list_score import ListScore, ListScorer
from iclevr_diffusion.evaluation.rendered import OBJECTS_IN_FRAMES, figures_on_rendered
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.evaluation.score import given_images, score_list, setting_result
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.progress_bar import Progress, progress
from iclevr_diffusion.utils.rng import keyed_generator
from iclevr_diffusion.utils.typed_json import write_dataclass


@dataclass(frozen=True)
class EvaluationProtocol:
    """The way that each pipeline is evaluated.

    Attributes:
        lists: The condition lists by name.
        evaluator: The evaluator that scores the images.
        second: A second evaluator, whose scores are reported, too; None for none.
        seeds: How often each list is sampled.
        batch_size: Images at once; no image depends on it.
        reference: Features of real images (N, F), for distances; None for none.
        held_out: Real frames to compare with; None for no fidelity.
        course_facts: What the course's report says of the weights; None for no such report.
    """

    lists: Mapping[str, Sequence[LabelSet]]
    evaluator: Evaluator
    second: Evaluator | None
    seeds: int
    batch_size: int
    reference: Tensor | None = None
    held_out: Frames | None = None
    course_facts: Mapping[str, str] | None = None

    @property
    def images(self) -> int:
        """The number of images that a pipeline generates."""
        held_out = 0 if self.held_out is None else len(self.held_out)
        return self.seeds * sum(map(len, self.lists.values())) + held_out


def evaluate(
    pipelines: Sequence[Pipeline],
    protocol: EvaluationProtocol,
    evaluation: Evaluation,
    out: Path,
    on_scores: Callable[[Pipeline, Mapping[str, ListScore]], object] = lambda *scores: None,
) -> list[Path]:
    """Evaluate pipelines; add the results to ``evaluation``, and save and print them.

    ``on_scores`` is called with each pipeline and its scores by condition list.

    Returns:
        The paths of the images.
    """
    images: list[Path] = []
    evaluator = protocol.evaluator
    evaluation.rendered.update(rendered_figures(protocol))
    with progress(len(pipelines) * protocol.images, "image") as bar:
        for pipeline in pipelines:
            bar.set_description(str(pipeline))
            strip = Strip(pipeline.steps)
            scores = score_lists(pipeline, protocol, strip, bar)
            fidelity = None
            if protocol.held_out is not None:
                fidelity = pipeline_fidelity(
                    pipeline, evaluator, protocol.held_out, protocol.batch_size, bar.update
                )
            evaluation.settings.append(setting_result(pipeline, scores, fidelity))
            folder = out if len(pipelines) == 1 else out / pipeline.folder
            heading = [f"{evaluation.weights}, {pipeline}", f"classified by {evaluator.name}"]
            images += save_images(folder, heading, scores, strip)
            if protocol.course_facts is not None:
                # As the files will have them, so that images=… gives the same scores.
                rounded = {name: to_unit_range(to_uint8(s.images)) for name, s in scores.items()}
                saved, facts = score_images(rounded, protocol), protocol.course_facts
                images += save_course_report(out, pipeline, saved, evaluation, facts)
            on_scores(pipeline, scores)
            # After each pipeline, so that a long evaluation that is stopped leaves what it has.
            write_figures(evaluation, out)
    if len(pipelines) > 1:
        images.append(save_accuracy_plot(evaluation, out))
    print_figures(evaluation, out, images)
    return images


def evaluate_images(
    images: Mapping[str, Tensor], protocol: EvaluationProtocol, evaluation: Evaluation, out: Path
) -> None:
    """Score given images (N, 3, H, W) of each list; otherwise as :func:`evaluate`."""
    evaluator = protocol.evaluator
    evaluation.rendered.update(rendered_figures(protocol))
    scores = score_images(images, protocol)
    evaluation.settings.append(given_images(scores))
    heading = [f"{evaluation.images}", f"classified by {evaluator.name}"]
    paths = save_images(out, heading, scores)
    write_figures(evaluation, out)
    print_figures(evaluation, out, paths)


def score_images(
    images: Mapping[str, Tensor], protocol: EvaluationProtocol
) -> dict[str, ListScore]:
    """Score images (N, 3, H, W) in [-1, 1] of each list."""
    scores = {}
    for name, label_sets in protocol.lists.items():
        scorer = ListScorer(protocol.evaluator, label_sets, protocol.second, protocol.reference)
        scorer.add(images[name].to(protocol.evaluator.device))
        scores[name] = scorer.score()
    return scores


def write_figures(evaluation: Evaluation, out: Path) -> None:
    """Write ``evaluation.json``, and its tables as ``evaluation.md``."""
    write_dataclass(out / EVALUATION, evaluation)
    write_text(out / "evaluation.md", markdown(evaluation) + factor_tables(evaluation))


def print_figures(evaluation: Evaluation, out: Path, images: Sequence[Path]) -> None:
    """Print the tables, and the files of an evaluation."""
    print(markdown(evaluation))
    for path in [out / EVALUATION, out / "evaluation.md", *images]:
        print(f"  {os.path.relpath(path)}")


def rendered_figures(protocol: EvaluationProtocol) -> dict[str, dict[str, float]]:
    """Score rendered scenes of the numbers of objects in the lists that no training frame shows."""
    if protocol.evaluator.vocabulary != ICLEVR_LABELS:
        return {}
    numbers = {len(labels) for label_sets in protocol.lists.values() for labels in label_sets}
    evaluators = [one for one in (protocol.evaluator, protocol.second) if one is not None]
    return {
        str(number): figures_on_rendered(evaluators, number)
        for number in sorted(numbers)
        if number > OBJECTS_IN_FRAMES
    }


def score_lists(
    pipeline: Pipeline, protocol: EvaluationProtocol, strip: Strip, bar: Progress
) -> dict[str, ListScore]:
    """Sample and score every list; the strip shows the first."""
    first = next(iter(protocol.lists))
    return {
        name: score_list(
            pipeline,
            protocol.evaluator,
            label_sets,
            protocol.seeds,
            protocol.reference,
            protocol.batch_size,
            strip if name == first else None,
            bar.update,
            second=protocol.second,
        )
        for name, label_sets in protocol.lists.items()
    }


def wants_fidelity(setting: bool | str, source: Source | None) -> bool:
    """Decide whether images are compared with held-out frames.

    Raises:
        UserError: The setting is unknown, or asks for a comparison that the data do not allow.
    """
    if setting not in ("auto", True, False):
        raise UserError(f"fidelity must be auto, true or false, got {setting!r:.60}")
    if setting is False or (source is None and setting == "auto"):
        return False
    if source is None:
        raise UserError("fidelity=true needs frames to compare with: data.root=…")
    count = held_out_sequences(source)
    if setting == "auto":
        return source.description()["source"] == "iclevr" and count >= MIN_SEQUENCES
    if count < MIN_SEQUENCES:
        raise UserError(
            f"fidelity=true needs {MIN_SEQUENCES} held-out sequences, a tenth of the data's;"
            f" these have {count}: give more data, or fidelity=false"
        )
    return True


def reference_features(count: int, source: Source | None, evaluator: Evaluator) -> Tensor | None:
    """Return features (count, F) of randomly chosen frames; None if there are none."""
    if source is None or count == 0:
        return None
    images = source.load_frames().images
    order = torch.randperm(len(images), generator=keyed_generator("reference"))
    return classify_frames(evaluator, images[order[:count].sort().values]).features
