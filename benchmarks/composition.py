"""Train with more and more label pairs held out, and measure what the networks compose.

    python benchmarks/composition.py --root data/iclevr
    python benchmarks/composition.py --steps 500 1500 --seeds 3 -- net.positions=false

Trains over held-out fractions, budgets and seeds, evaluates each on held-out and seen sets, prints
a table, and writes OUT/composition.json, OUT/composition.svg (exact match against the fraction) and
the page OUT/report/report.html. The split is the same for all seeds of training, and a larger
fraction holds out all of a smaller one. Each training is a separate process. To continue after an
interruption, or to add fractions, budgets or seeds, run the same command again: finished parts are
kept, others are resumed. A command with other settings needs another --out.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import trainings
from common import table
from iclevr_diffusion.data.holdout import HELD_OUT, SEEN
from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.utils.files import SUMMARY, write_text
from iclevr_diffusion.utils.statistics import summarize
from iclevr_diffusion.utils.typed_json import read_dataclass
from trainings import begun_run

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


def main() -> int:
    arguments = parse()
    fixed = {name: getattr(arguments, name) for name in FIXED}
    trainings.refuse_another_command(arguments.out, fixed)
    jobs = list(all_trainings(arguments))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(partial(run, arguments), jobs))
    trainings.report_failed([job.folder for job, ok in zip(jobs, done, strict=True) if not ok])
    rows = [row for job in jobs if (row := figures(job)) is not None]
    write_text(arguments.out / "composition.json", json.dumps(rows, indent=2) + "\n")
    if rows:
        plot(rows, arguments.kind).savefig(arguments.out / "composition.svg")
        print(table(compared(rows)))
    print(arguments.out / "composition.json")
    begun = [arguments.out] if rows else []
    reported = trainings.report(arguments.out, f"Held-out {arguments.kind}", begun)
    return reported if all(done) else 1


def parse() -> argparse.Namespace:
    parser = trainings.parser(__doc__)
    parser.add_argument("--experiment", default="quickstart", help="(quickstart)")
    parser.add_argument("--kind", choices=("pairs", "triples"), default="pairs", help="(pairs)")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.6])
    parser.add_argument("--steps", type=int, nargs="+", default=[1200, 3600], help="budgets")
    parser.add_argument("--seeds", type=int, default=2, help="of training (2)")
    parser.add_argument("--split-seed", type=int, default=0, help="of the held-out sets (0)")
    parser.add_argument("--sampling-seeds", type=int, default=5, help="per network (5)")
    parser.add_argument("--out", type=Path, default=Path("outputs/composition"))
    return parser.parse_args()


def all_trainings(arguments: argparse.Namespace) -> Iterator[Training]:
    """Yield all trainings: the small budgets of the first seed first."""
    for seed, steps in itertools.product(range(arguments.seeds), arguments.steps):
        for fraction in arguments.fractions:
            name = f"fraction{fraction:g}_steps{steps}_seed{seed}"
            yield Training(fraction, steps, seed, arguments.out / name)


def run(arguments: argparse.Namespace, job: Training) -> bool:
    """Train and evaluate, and return whether both finished."""
    data = [f"paths.cache={arguments.out}/cache"]
    data += [f"data.root={arguments.root}"] if arguments.root else []
    train = [*settings(arguments, job), *data, *arguments.overrides]
    evaluate = [f"lists=[{HELD_OUT},{SEEN}]", f"seeds={arguments.sampling_seeds}", *data]
    evaluate.append("fidelity=false")
    trained = trainings.train_and_evaluate(job.folder, arguments.jobs, train, evaluate)
    if trained is not None:
        print(f"{job.folder}: done", flush=True)
    return trained is not None


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
        "data": summary.data_source,
        "machine": summary.machine.device,
        "evaluator": evaluation.evaluator,
        "sampling": evaluation.settings[0].name,
        "lists": scores,
    }


def compared(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return a row of text for each budget and fraction: exact matches, the mean (of each seed)."""
    settings = sorted({(row["steps"], row["fraction"]) for row in rows})
    result = []
    for steps, fraction in settings:
        runs = [row for row in rows if (row["steps"], row["fraction"]) == (steps, fraction)]
        cells = {"steps": str(steps), "fraction": f"{fraction:g}"}
        for metric, evaluator in (("exact_match", ""), ("second_exact_match", ", second")):
            held_out, seen = (
                [row["lists"][name][metric] for row in runs if metric in row["lists"][name]]
                for name in (HELD_OUT, SEEN)
            )
            gaps = [one - other for one, other in zip(held_out, seen, strict=True)]
            cells[f"held out{evaluator}"] = with_values(held_out)
            cells[f"seen{evaluator}"] = with_values(seen)
            cells[f"difference{evaluator}"] = with_values(gaps, "+")
        result.append(cells)
    return result


def with_values(values: Sequence[float], sign: str = "") -> str:
    """Format the mean of values, and each of them in brackets."""
    if not values:
        return "–"
    each = ", ".join(format(value, f"{sign}.2f") for value in values)
    return f"{summarize(values).mean:{sign}.2f} ({each})"


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
    figure.legend(loc="outside upper center", ncols=2)
    return figure


if __name__ == "__main__":
    sys.exit(main())
