"""Runs on the disk: where they are, and what each has left."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclevr_diffusion.reporting.run_files import RunFiles, flatten, number, one_line, words
from iclevr_diffusion.reporting.scores import Scores, scores_of_evaluation, scores_of_training
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, SUMMARY, is_used
from iclevr_diffusion.utils.status import STATUS

STATES = ("running", "finished", "stopped", "failed")
UNFINISHED = "unfinished"  # it says running, and no process holds its folder


@dataclass(frozen=True)
class Published:
    """The figures of a lab report: accuracy by list."""

    report: str
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """What a training took; None where a run did not say.

    images: shown to the network, repetitions counted; in so many optimizer steps.
    flops_forward: of one image, once through the network.
    flops_per_training_image: of one image of the training.
    seconds: of all processes of the run, one after the other.
    last_process: the seconds are those of the last process only.
    device: in words.
    """

    images: float | None
    steps: float | None
    parameters: float | None
    flops_forward: float | None
    flops_per_training_image: float | None
    network_calls: float | None
    seconds: float | None
    last_process: bool
    device: str


@dataclass(frozen=True)
class Run:
    """One run.

    folder: where it lies.
    name: of its experiment, or of its folder where it has no config.
    state: one of STATES or UNFINISHED.
    message: what ended it, one line.
    ended: when its summary was written, in seconds since 1970; 0 where it has none.
    overrides: what it was started with, where it had no config yet.
    config: the values of its config.yaml as they are; empty where there is none.
    settings: the same by dotted names, as text.
    rows: of metrics.csv.
    evaluation, training: its scores, from two sources.
    images: grid_test, grid_new_test and strip, as far as there are any.
    problems: what of it could not be read.
    """

    folder: Path
    name: str
    state: str
    message: str
    ended: float
    overrides: list[str]
    config: dict[str, Any]
    settings: dict[str, str]
    rows: list[dict[str, float]]
    published: Published | None
    evaluation: Scores | None
    training: Scores | None
    cost: Cost
    images: dict[str, Path]
    problems: list[str]

    @property
    def frames_a_step(self) -> float:
        """Images that an optimizer step sees; before the end, as far as the config tells."""
        if self.cost.images and self.cost.steps:
            return self.cost.images / self.cost.steps
        factors = [
            number(self.config, "data", "batch_size"),
            number(self.config, "trainer", "accumulate_grad_batches"),
            number(self.config, "trainer", "devices"),  # auto, or a list, counts as one
        ]
        return math.prod(factor or 1 for factor in factors)

    @property
    def place(self) -> str:
        """The folder as text that can be shown."""
        return one_line(self.folder)

    @property
    def seed(self) -> str:
        return self.settings.get("seed", "")

    @property
    def steps(self) -> int:
        """Optimizer steps done, as far as metrics.csv tells."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Every run in the folders and below them, each once, in the order of its path.

    Trainings of evaluators are left out.

    Raises:
        UserError: a folder is not there, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: there is no such folder")
        paths = sorted(find_runs(Path(folder)), key=by_numbers)
        if not paths:
            raise UserError(f"{folder}: no run in that folder, nor below it")
        for path in paths:
            found.setdefault(path.resolve(), path)
    runs = [run for run in map(read_run, found.values()) if "train_on" not in run.settings]
    if not runs:
        raise UserError(f"{', '.join(folders)}: only trainings of evaluators there")
    return runs


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs in and below ``folder``; links to other folders are not followed."""
    for path, folders, files in os.walk(folder):
        if CONFIG in files or STATUS in files:
            folders.clear()  # a run holds no other
            yield Path(path)


def read_run(folder: Path) -> Run:
    """What a run left, whatever of it is missing or damaged."""
    files = RunFiles(folder)
    config = files.yaml(CONFIG) or {}
    summary = files.json(SUMMARY)
    status = files.json(STATUS) or {}
    training = None if summary is None else scores_of_training(files, summary, config)
    overrides = status.get("overrides")
    if alike := _all_alike(summary or {}):
        files.problems.append(f"collapsed: its images of {', '.join(alike)} are all alike")
    return Run(
        folder=folder,
        name=words(config, "name") or one_line(folder.resolve().name),
        state=_state(folder, words(status, "status"), summary),
        message=words(status, "message"),
        ended=0.0 if summary is None else (folder / SUMMARY).stat().st_mtime,
        overrides=[one_line(word) for word in overrides] if isinstance(overrides, list) else [],
        config=config,
        settings=dict(flatten(config)),
        rows=files.read(folder / "metrics.csv", read_metrics) or [],
        published=_published(config),
        evaluation=scores_of_evaluation(files, summary or {}, config),
        training=training,
        cost=_cost(summary or {}),
        images=_embedded(files),
        problems=files.problems,
    )


def _state(folder: Path, said: str, summary: dict[str, Any] | None) -> str:
    if said in STATES and said != "running":
        return said
    if not said and summary is not None:  # a run of before there was a status.json
        return "finished"
    return "running" if is_used(folder) else UNFINISHED


def _published(config: dict[str, Any]) -> Published | None:
    values = {name: number(config, "published", name) for name in ("test", "new_test")}
    accuracy = {name: value for name, value in values.items() if value is not None}
    return Published(words(config, "published", "report"), accuracy) if accuracy else None


def _all_alike(summary: dict[str, Any]) -> list[str]:
    """The lists of which a run drew one image only."""
    weights = summary.get("weights")
    lists = weights.get("all_alike") if isinstance(weights, dict) else None
    return [one_line(name) for name in lists] if isinstance(lists, list) else []


def _cost(summary: dict[str, Any]) -> Cost:
    of_all = number(summary, "seconds")
    return Cost(
        images=number(summary, "images_seen"),
        steps=number(summary, "steps"),
        parameters=number(summary, "parameters"),
        flops_forward=number(summary, "flops_forward"),
        flops_per_training_image=number(summary, "flops_per_training_image"),
        network_calls=number(summary, "network_calls"),
        seconds=number(summary, "seconds_this_process") if of_all is None else of_all,
        last_process=of_all is None,
        device=words(summary, "machine", "device"),
    )


def _embedded(files: RunFiles) -> dict[str, Path]:
    """Those of the evaluation, else the newest of the training."""
    of_training = {
        "grid_test": files.folder.glob("images/sample_test_*.png"),
        "grid_new_test": files.folder.glob("images/sample_new_test_*.png"),
        "strip": files.folder.glob("images/strip.png"),
    }
    found = {}
    for name, paths in of_training.items():
        newest_first = sorted(paths, key=by_numbers, reverse=True)
        for path in (files.folder / "evaluation" / f"{name}.png", *newest_first):
            if files.read(path, lambda path: path) is not None:
                found[name] = path
                break
    return found


def by_numbers(path: Path) -> list[Any]:
    """A key that puts 2_linear before 10_linear."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]
