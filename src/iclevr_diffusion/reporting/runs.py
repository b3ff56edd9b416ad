"""The runs on disk, and the files of each."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iclevr_diffusion.data.conditions import TEST_LISTS
from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.reporting.run_files import RunFiles, number
from iclevr_diffusion.reporting.scores import Scores, scores_of_evaluation, scores_of_training
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import CONFIG, SUMMARY, is_used
from iclevr_diffusion.utils.nested import flatten
from iclevr_diffusion.utils.status import STATUS
from iclevr_diffusion.utils.text import one_line

STATES = ("running", "finished", "stopped", "failed")
UNFINISHED = "unfinished"  # status.json says running, but no process holds the folder
# An override that changes the system or its data, apart from how long it trains.
OF_THE_SYSTEM = re.compile(
    r"[+~]*(data|guidance|model|net|optimizer|prediction|sampler|scale|schedule)\b(?!\.root=)"
)


@dataclass(frozen=True)
class Status:
    """The entries of ``status.json`` that the report uses."""

    status: str = ""
    message: str = ""
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: Where it is.
        name: The name of its experiment, or of its folder if it has no config.
        state: One of STATES or UNFINISHED.
        message: What ended it, in one line.
        ended: When its summary was written, in seconds since 1970; 0 if it has none.
        overrides: The overrides of its command line.
        config: The values of its config.yaml; empty if there is none.
        settings: The same by dotted names, as text.
        rows: The rows of metrics.csv.
        summary: Its summary.json.
        evaluation, training: Its scores, from two sources.
        images: The paths of grids and strip, by list or ``strip``.
        problems: What could not be read.
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
    summary: Summary | None
    evaluation: Scores | None
    training: Scores | None
    images: dict[str, Path]
    problems: list[str]

    @property
    def images_per_step(self) -> float:
        """Images per optimizer step; from the config if the run has no summary."""
        if self.summary is not None and self.summary.images_seen and self.summary.steps:
            return self.summary.images_seen / self.summary.steps
        names = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices")
        factors = [number(self.settings.get(name)) for name in names]  # devices=auto counts as one
        return math.prod(factor or 1 for factor in factors)

    @property
    def path(self) -> str:
        """The folder as text that is safe to show."""
        return one_line(self.folder)

    @property
    def seed(self) -> str:
        """The training seed as text; empty if it is unknown."""
        return self.settings.get("seed", "")

    @property
    def steps(self) -> int:
        """Optimizer steps so far, according to metrics.csv."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else 0

    @property
    def changes_the_experiment(self) -> bool:
        """Whether it is another system than that of its experiment, or has other data."""
        return any(map(OF_THE_SYSTEM.match, self.overrides))

    def published(self, condition_list: str) -> float | None:
        """Return the accuracy in the lab report that the config names."""
        return number(self.settings.get(f"published.{condition_list}"))


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Read every run in the folders and below them, once each, in the order of the paths.

    Trainings of evaluators are left out.

    Raises:
        UserError: A folder does not exist, or there is no run in it.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: there is no such folder")
        paths = sorted(find_runs(Path(folder)), key=natural)
        if not paths:
            raise UserError(f"{folder}: no run in that folder, nor below it")
        for path in paths:
            found.setdefault(path.resolve(), path)
    runs = [run for run in map(read_run, found.values()) if "train_on" not in run.settings]
    if not runs:
        raise UserError(f"{', '.join(folders)}: only trainings of evaluators there")
    return runs


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs in and below ``folder``; links to folders are not followed."""
    for path, folders, files in os.walk(folder):
        if CONFIG in files or STATUS in files:
            folders.clear()  # a run contains no other
            yield Path(path)


def read_run(folder: Path) -> Run:
    """Read the files of a run, whatever is missing or damaged."""
    files = RunFiles(folder)
    config = files.yaml(CONFIG) or {}
    settings = {name: one_line(value) for name, value in flatten(config).items()}
    summary = files.json(SUMMARY, Summary)
    status = files.json(STATUS, Status) or Status()
    if summary is not None and summary.weights.collapsed_lists:
        lists = ", ".join(summary.weights.collapsed_lists)
        files.problems.append(f"collapsed: its images of {lists} are all alike")
    return Run(
        folder=folder,
        name=settings.get("name") or one_line(folder.resolve().name),
        state=_state(folder, status.status, summary),
        message=status.message,
        ended=0.0 if summary is None else (folder / SUMMARY).stat().st_mtime,
        overrides=status.overrides,
        config=config,
        settings=settings,
        rows=files.read("metrics.csv", read_metrics) or [],
        summary=summary,
        evaluation=_evaluation(files, summary),
        training=None if summary is None else scores_of_training(summary),
        images=_images(files),
        problems=files.problems,
    )


def _state(folder: Path, status: str, summary: Summary | None) -> str:
    if status in STATES and status != "running":
        return status
    if not status and summary is not None:  # a run from before status.json existed
        return "finished"
    return "running" if is_used(folder) else UNFINISHED


def _evaluation(files: RunFiles, summary: Summary | None) -> Scores | None:
    """Read the scores that ``evaluate out=<run>/evaluation`` has left."""
    name = f"evaluation/{EVALUATION}"
    evaluation = files.json(name, Evaluation)
    if evaluation is None:
        return None
    if summary is None:
        return scores_of_evaluation(evaluation, "")
    if summary.weights.sha256 and evaluation.weights_sha256 != summary.weights.sha256:
        problem = "of other weights than the run's; evaluate it again"
        if not evaluation.weights_sha256:
            problem = "of an average (ema_length) or of given images, not of the run's weights"
        files.problems.append(f"{name}: {problem}")
        return None
    return scores_of_evaluation(evaluation, summary.weights.default_sampling)


def _images(files: RunFiles) -> dict[str, Path]:
    """Find the images of the evaluation, or the newest of the training."""
    patterns = {name: (f"grid_{name}.png", f"sample_{name}_*.png") for name in TEST_LISTS}
    patterns["strip"] = "strip.png", "strip.png"
    found = {}
    for name, (of_evaluation, of_training) in patterns.items():
        newest_first = sorted(files.folder.glob(f"images/{of_training}"), key=natural, reverse=True)
        for path in (files.folder / "evaluation" / of_evaluation, *newest_first):
            if files.read(path.relative_to(files.folder), lambda path: path) is not None:
                found[name] = path
                break
    return found


def natural(path: Path) -> list[Any]:
    """Return a key that sorts 2_linear before 10_linear."""
    parts = re.split(r"([0-9]+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
