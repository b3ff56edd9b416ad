"""Save a trained evaluator in its run folder, with its accuracy on held-out frames."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L

from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint, trained_state
from iclevr_diffusion.diffusion.run_summary import Machine
from iclevr_diffusion.evaluation.classifier import ObjectEvaluator, save_evaluator
from iclevr_diffusion.evaluation.classifier_networks import describe_classifier, make_classifier
from iclevr_diffusion.evaluation.evaluator_report import (
    augmented,
    called_clear,
    evaluate_classifier,
    mistakes,
    noise_like,
    with_a_wrong_label,
)
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.training.callbacks.checkpoint import LAST
from iclevr_diffusion.training.evaluator import EvaluatorModule
from iclevr_diffusion.training.save_results import machine
from iclevr_diffusion.utils.environment import versions
from iclevr_diffusion.utils.typed_json import write_dataclass
from iclevr_diffusion.utils.weights import count_parameters

FIGURES = "evaluator.json"


@dataclass(frozen=True)
class EvaluatorFigures:
    """The contents of ``evaluator.json``.

    Attributes:
        evaluator: Name and checksum of the weights.
        train_on: The kinds of frames that it was trained on.
        frames: Number of training images.
        epochs: Finished epochs.
        steps: Optimizer steps.
        seed: The seed of the training.
        parameters: Number of parameters.
        bytes: Size of the weights file.
        seconds_this_process: Training time since the start or the last resume.
        machine: What it was trained on.
        versions: Versions of packages.
        held_out: By set of held-out frames, what :func:`.evaluate_classifier` returns.
        held_out_unclear: By kind of unclear objects, what :func:`.called_clear` returns.
    """

    evaluator: str
    train_on: str
    frames: int
    epochs: int
    steps: int
    seed: int
    parameters: int
    bytes: int
    seconds_this_process: float
    machine: Machine
    versions: dict[str, str]
    held_out: dict[str, dict[str, Any]]
    held_out_unclear: dict[str, dict[str, float | int | None]]


def save_evaluator_results(
    folder: Path,
    trainer: L.Trainer,
    module: EvaluatorModule,
    datamodule: EvaluatorData,
    seconds: float,
) -> None:
    """Save the weights, ``evaluator.json`` and images of the mistakes, and print them."""
    last = read_checkpoint(folder / "checkpoints" / LAST)
    net = make_classifier(**describe_classifier(module.net))  # type: ignore[arg-type]
    net.load_state_dict(trained_state(last))
    file = save_evaluator(net, folder / "evaluator.safetensors")
    if not datamodule.held_out:  # the training itself was finished before
        datamodule.setup("fit")
    evaluator = ObjectEvaluator(file)  # from the file, in its precision, as it will be used
    sets = held_out_sets(datamodule)
    figures = EvaluatorFigures(
        evaluator=evaluator.name,
        train_on=datamodule.train_on,
        frames=len(datamodule.frame_names),
        epochs=last["progress"]["epoch"] + 1,
        steps=last["progress"]["steps"],
        seed=module.seed,
        parameters=count_parameters(evaluator),
        bytes=file.stat().st_size,
        seconds_this_process=round(seconds, 1),
        machine=machine(trainer),
        versions=versions(),
        held_out={name: evaluate_classifier(evaluator, frames) for name, frames in sets.items()},
        held_out_unclear={
            name: called_clear(evaluator, frames)
            for name, frames in datamodule.held_out_unclear.items()
        },
    )
    write_dataclass(folder / FIGURES, figures)
    paths = [file, folder / FIGURES]
    for name, frames in datamodule.held_out.items():
        title = f"{name} frames with a mistake of {evaluator.name}"
        image = mistakes(evaluator, frames, title)
        paths.append(save_image(image, folder / f"mistakes_{name}.png"))
    print_figures(figures, paths)


def held_out_sets(datamodule: EvaluatorData) -> dict[str, Frames]:
    """Return the held-out frames by name, and the first of them augmented and made wrong."""
    first = next(iter(datamodule.held_out.values()))
    return datamodule.held_out | {
        "augmented": augmented(first),
        "noise": noise_like(first),
        "wrong label": with_a_wrong_label(first),
    }


def print_figures(figures: EvaluatorFigures, paths: list[Path]) -> None:
    """Print the results on held-out frames, and the saved files."""
    for name, values in figures.held_out.items():
        print(
            f"{name:12} {values['frames']:5} frames: accuracy {values['accuracy']:.4f},"
            f" exact match {values['exact_match']:.4f},"
            f" count accuracy {values['count_accuracy']:.4f}"
        )
    for name, values in figures.held_out_unclear.items():
        if values["called_clear"] is not None:
            print(f"{name}: {values['called_clear']:.4f} of {values['objects']} called clear")
    for path in paths:
        print(f"  {os.path.relpath(path)}")
