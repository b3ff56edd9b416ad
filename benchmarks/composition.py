"""Train with more and more label pairs held out, and measure what the networks compose.

    python benchmarks/composition.py --root data/iclevr
    python benchmarks/composition.py --steps 500 1500 --seeds 3 -- net.positions=false

Trains over held-out fractions, budgets and seeds, evaluates each on held-out and seen sets, and
writes OUT/composition.json, OUT/composition.svg (exact match against the fraction) and the page
OUT/report/report.html. The split is the same for all seeds of training, and a larger fraction holds
out all of a smaller one. Each training is a separate process. To continue after an interruption, or
to add fractions, budgets or seeds, run the same command again: finished parts are kept, others are
resumed. A command with other settings needs another --out.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ablation import REAL, begun_run, command
from iclevr_diffusion.data.holdout import HELD_OUT, SEEN
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.training.summary import Summary
from iclevr_diffusion.utils.files import SUMMARY, write_text
from iclevr_diffusion.utils.statistics import summarize
from iclevr_diffusion.utils.status import read_status
from iclevr_diffusion.utils.typed_json import read_dataclass

METRICS = ("accuracy", "exact_match")
COLORS = ("#2f7fd1", "#d9630f", "#1d9160", "#c2479b")
FIXED = ("root", "experiment", "kind", "split_seed", "sampling_seeds", "overrides")


@dataclass(frozen=True)
class Training:
    """One training, and the folder above its run."""

    fraction: float
    steps: int
    seed: int
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def main() -> int:
    arguments = parse()
    refuse_another_command(arguments)
    jobs = list(trainings(arguments))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(partial(run, arguments), jobs))
    for job in itertools.compress(jobs, (not ok for ok in done)):
        print(f"failed: {job.log}", file=sys.stderr)
    rows = [row for job in jobs if (row := figures(job)) is not None]
    write_text(arguments.out / "composition.json", json.dumps(rows, indent=2) + "\n")
    if rows:
        plot(rows, arguments.kind).savefig(arguments.out / "composition.svg")
    print(arguments.out / "composition.json")
    shutil.rmtree(arguments.out / "report", ignore_errors=True)  # of an earlier command
    report = [sys.executable, "-m", "iclevr_diffusion.report", str(arguments.out)]
    words = [f"out={arguments.out}/report", f"title=Held-out {arguments.kind}"]
    compared = subprocess.run([*report, *words], check=False).returncode
    return compared if all(done) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = REAL if (Path(REAL) / "train.json").is_file() else None
    help = f"the course's data ({REAL} where it is there; else synthetic frames)"
    parser.add_argument("--root", default=root, help=help)
    parser.add_argument("--experiment", default="quickstart", help="(quickstart)")
    parser.add_argument("--kind", choices=("pairs", "triples"), default="pairs", help="(pairs)")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.6])
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 1200], help="budgets")
    parser.add_argument("--seeds", type=int, default=2, help="of training (2)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the held-out sets (0)")
    parser.add_argument("--sampling-seeds", type=int, default=5, help="per network (5)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once (2)")
    parser.add_argument("--out", type=Path, default=Path("outputs/composition"))
    parser.add_argument("overrides", nargs="*", help="settings of all trainings, after --")
    return parser.parse_args()


def refuse_another_command(arguments: argparse.Namespace) -> None:
    """Check that the trainings of a folder have the same settings, since finished ones are kept."""
    path = arguments.out / "command.json"
    given = {name: getattr(arguments, name) for name in FIXED}
    if path.is_file() and json.loads(path.read_text("utf-8")) != given:
        sys.exit(f"error: {arguments.out} is of another command ({path}); name another --out")
    write_text(path, json.dumps(given, indent=2) + "\n")


def trainings(arguments: argparse.Namespace) -> Iterator[Training]:
    """Yield all trainings: the small budgets of the first seed first."""
    for seed, steps in itertools.product(range(arguments.seeds), arguments.steps):
        for fraction in arguments.fractions:
            name = f"fraction{fraction:g}_steps{steps}_seed{seed}"
            yield Training(fraction, steps, seed, arguments.out / name)


def run(arguments: argparse.Namespace, job: Training) -> bool:
    """Train and evaluate, and return whether both finished."""
    paths = [f"paths.outputs={job.folder}", f"paths.cache={arguments.out}/cache"]
    paths += [f"data.root={arguments.root}"] if arguments.root else []
    go = partial(command, arguments, job.log)
    begun = begun_run(job.folder)
    if begun is None or read_status(begun).get("status") != "finished":
        print(f"{job.folder}: training", flush=True)
        resume = [] if begun is None else ["resume=true"]
        if not go("train", *settings(arguments, job), *paths, *arguments.overrides, *resume):
            return False
    trained = begun_run(job.folder)
    assert trained is not None
    evaluation = trained / "evaluation"
    if not (evaluation / EVALUATION).is_file():
        shutil.rmtree(evaluation, ignore_errors=True)  # it was interrupted
        lists = f"lists=[{HELD_OUT},{SEEN}]"
        what = [lists, f"seeds={arguments.sampling_seeds}", "reference_frames=0", "fidelity=false"]
        if not go("evaluate", f"weights={trained}", f"out={evaluation}", *what, *paths):
            return False
    print(f"{job.folder}: done", flush=True)
    return True


def settings(arguments: argparse.Namespace, job: Training) -> list[str]:
    """Return the settings of a training, which is scored only at its end."""
    return [
        f"experiment={arguments.experiment}",
        f"data/holdout={arguments.kind}",
        f"data.holdout.fraction={job.fraction}",
        f"data.holdout.seed={arguments.split_seed}",
        f"trainer.max_steps={job.steps}",
        "trainer.max_epochs=-1",
        f"seed={job.seed}",
        "trainer=cpu",
        "trainer.enable_progress_bar=false",
        "callbacks.scoring.every_n_epochs=0",
        "callbacks.scoring.max_conditions=8",  # nothing is chosen by them; evaluate samples all
        "callbacks.checkpoint.every_n_epochs=0",
        "callbacks.checkpoint.every_n_steps=100",
    ]


def figures(job: Training) -> dict[str, Any] | None:
    """Return the figures of a finished training; None of any other."""
    trained = begun_run(job.folder)
    if trained is None or not (trained / "evaluation" / EVALUATION).is_file():
        return None
    summary = read_dataclass(Summary, trained / SUMMARY)
    evaluation = read_dataclass(Evaluation, trained / "evaluation" / EVALUATION)
    lists = evaluation.settings[0].lists
    scores = {
        name: {
            "conditions": result.conditions,
            **{metric: round(result.metrics[metric].mean, 4) for metric in METRICS},
            **{
                f"second_{metric}": round(result.second_evaluator[metric].mean, 4)
                for metric in METRICS
                if metric in result.second_evaluator
            },
        }
        for name, result in lists.items()
    }
    return {
        "fraction": job.fraction,
        "steps": job.steps,
        "seed": job.seed,
        "images_seen": summary.images_seen,
        "seconds": summary.seconds,
        "data": summary.data,
        "machine": summary.machine.device,
        "evaluator": evaluation.evaluator,
        "sampling": evaluation.settings[0].name,
        "lists": scores,
    }


def plot(rows: list[dict[str, Any]], kind: str) -> Figure:
    """Plot exact match against the fraction: a point per training, lines through the means."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for steps, color in zip(sorted({row["steps"] for row in rows}), COLORS, strict=False):
        for name, style, marker in ((SEEN, "-", "o"), (HELD_OUT, "--", "^")):
            by_fraction: dict[float, list[float]] = {}
            for row in rows:
                if row["steps"] == steps:
                    score = row["lists"][name]["exact_match"]
                    by_fraction.setdefault(row["fraction"], []).append(score)
                    axes.plot(row["fraction"], score, marker, color=color, ms=4, alpha=0.5)
            x = sorted(by_fraction)
            means = [summarize(by_fraction[fraction]).mean for fraction in x]
            label = f"{name.replace('_', '-')}, {steps} steps"
            axes.plot(x, means, style, color=color, label=label)
    axes.set(xlabel=f"fraction of the {kind} held out", ylabel="exact match", ylim=(0, 1.02))
    axes.grid(alpha=0.2)
    axes.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
