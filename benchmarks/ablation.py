"""Train the cells of an ablation with several seeds, and compare them.

    python benchmarks/ablation.py --root data/iclevr --seeds 4
    python benchmarks/ablation.py --group without_positions --root data/iclevr --seeds 2
    python benchmarks/ablation.py --group reports -- callbacks.scoring.every_n_epochs=2

The groups:

  positions          {cosine, linear} × {epsilon, sample, v_prediction}, and flow: the network of
                     quickstart at 64×64, with the positions of objects. Each cell first searches
                     its learning rate, with a third of the steps and a seed of its own: × 0.5, 1
                     and 2, and beyond while the best one is at an end. The best one has the least
                     geometric mean of the errors of x_0 over the noise levels (x0_errors.py).
                     The search ends at × 0.125 and × 8: three to five trainings per cell.
  without_positions  {cosine, linear} × {epsilon, sample}: small copies of the lab's systems
  reports            small copies of all lab reports' systems

Each training is a separate process. To continue after an interruption or to add seeds, run the same
command again: finished parts are kept, others are resumed. Differences are paired by the seed of
the training, which sets its initial weights, order of frames and noise. The tables are
OUT/ablation.md and OUT/ablation.json (fidelity is that of the first seed), the page with images
and curves is OUT/report/report.html. A command with other settings needs another --out.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ablation_tables
import trainings
from trainings import begun_run

CONF = Path(__file__).parents[1] / "conf" / "experiment"
# Not of a report, or nearly the copy of another: all copies train with Muon in batches of 16.
LEFT_OUT = (
    "ablation",
    "best",
    "cosine_eps_adam",
    "cosine_eps_lr5e5",
    "detail",
    "flow",
    "from_scratch",
    "headings",
    "lab",
    "quickstart",
)
SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
SEARCH_SEED = 1000
SEARCH_SHARE = 3  # a search training has 1/3 of the steps
MULTIPLIERS = (0.5, 1, 2)
WIDEST = (0.125, 8)


@dataclass(frozen=True)
class Cell:
    """One configuration of the ablation.

    Attributes:
        name: its folder.
        settings: of its trainings.
        search: whether its learning rate is searched.
    """

    name: str
    settings: tuple[str, ...]
    search: bool = False


@dataclass(frozen=True)
class Training:
    """One training of a cell, and its folder."""

    cell: Cell
    seed: int
    folder: Path
    settings: tuple[str, ...]
    evaluated: bool = True


def main() -> int:
    arguments = parse()
    cells = chosen(arguments)
    names = ("group", "root", "sampling_seeds", "steps", "evaluator", "overrides")
    out = arguments.out
    trainings.refuse_another_command(out, {name: getattr(arguments, name) for name in names})
    found, failed = search(arguments, [cell for cell in cells if cell.search])
    failed += run_all(arguments, list(measured(arguments, cells, found)))
    trainings.report_failed([job.folder for job in failed])
    runs = {
        cell.name: [begun_run(folder(arguments, cell, seed)) for seed in range(arguments.seeds)]
        for cell in cells
    }
    ablation_tables.write(out, runs, found)
    begun = [path for paths in runs.values() for path in paths if path is not None]
    if (out / "ablation.md").is_file():
        print(out / "ablation.md")
    compared = trainings.report(out, f"Ablation: {arguments.group}", begun)
    return 1 if failed else compared


def chosen(arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command names, or all of its group."""
    cells = {cell.name: cell for cell in group(arguments)}
    if unknown := [name for name in arguments.cells or () if name not in cells]:
        trainings.refuse(f"no such cell: {', '.join(unknown)}; there are {', '.join(cells)}")
    return [cell for cell in cells.values() if cell.name in (arguments.cells or cells)]


def run_all(arguments: argparse.Namespace, jobs: Sequence[Training]) -> list[Training]:
    """Run the trainings, some at once, and return those that failed."""
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(partial(run, arguments), jobs))
    return [job for job, ok in zip(jobs, done, strict=True) if not ok]


def parse() -> argparse.Namespace:
    parser = trainings.parser(__doc__)
    groups = ("positions", "without_positions", "reports")
    parser.add_argument("--group", choices=groups, default="positions")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="only these: cosine_sample …")
    parser.add_argument("--evaluator", help="a checkpoint.pth, instead of the packaged evaluator")
    parser.add_argument("--seeds", type=int, default=1, help="of training (1)")
    parser.add_argument("--sampling-seeds", type=int, default=3, help="per network (3)")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of 16 crops, with positions (2000)"
    )
    parser.add_argument("--out", type=Path, help="(outputs/ablation_GROUP)")
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path(f"outputs/ablation_{arguments.group}")
    return arguments


def group(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells of the chosen group."""
    if arguments.group == "reports":
        for path in sorted(CONF.glob("*.yaml")):
            if path.stem not in LEFT_OUT:
                yield Cell(path.stem, (f"experiment={path.stem}", "scale=small"))
        return
    with_positions = arguments.group == "positions"
    base = ["experiment=ablation", f"trainer.max_steps={arguments.steps}", "trainer.max_epochs=-1"]
    base.append("callbacks.scoring.max_conditions=8")  # short: evaluated after the training
    if not with_positions:
        base = ["experiment=cosine_eps", "scale=small", "published=null"]
    predictions = ["epsilon", "sample", *(["v_prediction"] if with_positions else [])]
    for short, schedule in SCHEDULES.items():
        for prediction in predictions:
            choice = (f"schedule={schedule}", f"prediction={prediction}")
            yield Cell(f"{short}_{prediction}", (*base, *choice), search=with_positions)
    if with_positions:
        yield Cell("flow", (*base, "schedule=flow", "prediction=velocity"), search=True)


def folder(arguments: argparse.Namespace, cell: Cell, seed: int) -> Path:
    return Path(arguments.out) / cell.name / f"seed{seed}"


def search(
    arguments: argparse.Namespace, cells: Sequence[Cell]
) -> tuple[dict[str, dict[float, float]], list[Training]]:
    """Search the learning rates of cells, also beyond ``MULTIPLIERS`` while an end is the best.

    Returns:
        By cell, the error of each multiplier that was tried; the trainings that failed.
    """
    jobs = [search_training(arguments, cell, one) for cell in cells for one in MULTIPLIERS]
    failed = []
    while jobs and not failed:
        failed = run_all(arguments, jobs)
        found = {cell.name: search_errors(arguments.out, cell) for cell in cells}
        ends = [(cell, next_multiplier(found[cell.name])) for cell in cells]
        jobs = [search_training(arguments, cell, one) for cell, one in ends if one is not None]
    return {cell.name: search_errors(arguments.out, cell) for cell in cells}, failed


def search_training(arguments: argparse.Namespace, cell: Cell, multiplier: float) -> Training:
    where = arguments.out / cell.name / "search" / f"{multiplier:g}"
    steps = f"trainer.max_steps={arguments.steps // SEARCH_SHARE}"
    settings = (*cell.settings, steps, f"optimizer.lr_multiplier={multiplier:g}")
    return Training(cell, SEARCH_SEED, where, settings, evaluated=False)


def next_multiplier(errors: Mapping[float, float]) -> float | None:
    """Return the multiplier beyond the best one if that is an end, otherwise None."""
    if len(errors) < len(MULTIPLIERS):
        return None  # a training of the search failed
    best = min(errors, key=errors.__getitem__)
    beyond = 2 * best if best == max(errors) else best / 2
    inside = min(errors) < best < max(errors)
    return None if inside or not WIDEST[0] <= beyond <= WIDEST[1] else beyond


def measured(
    arguments: argparse.Namespace,
    cells: Sequence[Cell],
    found: Mapping[str, Mapping[float, float]],
) -> Iterator[Training]:
    """Yield the trainings that are compared, one seed of all cells after the other.

    Args:
        arguments: of the command.
        cells: to train.
        found: by cell, the error of each learning-rate multiplier that was tried.
    """
    for seed in range(arguments.seeds):
        for cell in cells:
            settings = cell.settings
            if cell.search:
                errors = found[cell.name]
                if len(errors) < len(MULTIPLIERS):
                    continue  # a training of the search failed
                settings += (f"optimizer.lr_multiplier={min(errors, key=errors.__getitem__):g}",)
            yield Training(cell, seed, folder(arguments, cell, seed), settings)


def search_errors(out: Path, cell: Cell) -> dict[float, float]:
    """Return the geometric mean of the errors of x_0, by learning-rate multiplier."""
    result = {}
    folders = (out / cell.name / "search").glob("*/")
    for folder in sorted(folders, key=lambda folder: float(folder.name)):
        trained = begun_run(folder)
        if trained is not None and (trained / ablation_tables.X0_ERRORS).is_file():
            entries = json.loads((trained / ablation_tables.X0_ERRORS).read_text("utf-8"))
            logs = [math.log(entry["error"]) for entry in entries]
            result[float(folder.name)] = math.exp(sum(logs) / len(logs))
    return result


def run(arguments: argparse.Namespace, job: Training) -> bool:
    """Train, and if wanted evaluate, and return whether all finished."""
    data = [f"data.root={arguments.root}"] if arguments.root else []
    data += [f"evaluator.checkpoint={arguments.evaluator}"] if arguments.evaluator else []
    data.append(f"paths.cache={arguments.out}/cache")
    train = [*job.settings, f"seed={job.seed}", f"name={job.cell.name}", "trainer=cpu"]
    train += ["trainer.enable_progress_bar=false", *data, *arguments.overrides]
    fidelity = "auto" if job.cell.search and not job.seed else "false"  # it takes minutes
    evaluate = [f"fidelity={fidelity}", f"seeds={arguments.sampling_seeds}", *data]
    trained = trainings.train_and_evaluate(
        job.folder, arguments.jobs, train, evaluate if job.evaluated else None
    )
    if trained is None:
        return False
    errors = trained / ablation_tables.X0_ERRORS
    if job.cell.search and not errors.is_file():
        program = Path(__file__).with_name("x0_errors.py")
        words = (str(program), str(trained), str(errors))
        if not trainings.run_python(job.folder, arguments.jobs, *words):
            return False
    print(f"{job.folder}: done", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
