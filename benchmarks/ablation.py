"""Train small copies of the experiments with several seeds, and compare them on one page.

    python benchmarks/ablation.py --root data/iclevr --seeds 3
    python benchmarks/ablation.py --experiments linear_eps cosine_eps -- trainer.max_epochs=8

Each training is a separate process. To continue after an interruption or to add seeds, run the same
command again: finished trainings are kept, others are resumed. The page is OUT/report/report.html;
a command with other settings needs another --out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.status import read_status

CONF = Path(__file__).parents[1] / "conf" / "experiment"
# Already small, or nearly the copy of another: all copies train with Muon in batches of 16.
LEFT_OUT = ("quickstart", "best", "cosine_eps_lr5e5", "cosine_eps_adam")
REAL = "data/iclevr"


def main() -> int:
    arguments = parse()
    refuse_another_command(arguments)
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in arguments.experiments]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        failed = [
            job
            for job, ok in zip(jobs, pool.map(partial(run, arguments), jobs), strict=True)
            if not ok
        ]
    for name, seed in failed:
        print(f"failed: {name}, seed {seed}: {log_file(arguments, name, seed)}", file=sys.stderr)
    for name in ("report.html", "report.md"):  # of an earlier command
        (Path(arguments.out) / "report" / name).unlink(missing_ok=True)
    report = [sys.executable, "-m", "iclevr_diffusion.report", str(arguments.out)]
    report += [f"out={arguments.out}/report", "title=Small copies of the lab reports' systems"]
    compared = subprocess.run(report, check=False).returncode
    return 1 if failed else compared


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem not in LEFT_OUT)
    parser.add_argument("--experiments", nargs="+", default=known, choices=known, metavar="NAME")
    root = REAL if (Path(REAL) / "train.json").is_file() else None
    help = f"the course's data ({REAL} where it is there; else synthetic frames)"
    parser.add_argument("--root", default=root, help=help)
    parser.add_argument("--evaluator", help="a checkpoint.pth, instead of the packaged evaluator")
    parser.add_argument("--seeds", type=int, default=1, help="of training (1)")
    parser.add_argument("--sampling-seeds", type=int, default=3, help="per network (3)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once (2)")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablation"))
    parser.add_argument("overrides", nargs="*", help="settings of all trainings, after --")
    return parser.parse_args()


def refuse_another_command(arguments: argparse.Namespace) -> None:
    """Check that the trainings of a folder have the same settings, since finished ones are kept."""
    path = arguments.out / "command.json"
    names = ("root", "sampling_seeds", "evaluator", "overrides")
    command = {name: getattr(arguments, name) for name in names}
    if path.is_file() and json.loads(path.read_text("utf-8")) != command:
        sys.exit(f"error: {arguments.out} is of another command ({path}); name another --out")
    write_text(path, json.dumps(command, indent=2) + "\n")


def run(arguments: argparse.Namespace, job: tuple[str, int]) -> bool:
    """Train and evaluate one experiment with one seed, and return whether it finished."""
    name, seed = job
    runs = arguments.out / f"seed{seed}" / name
    data = [f"data.root={arguments.root}"] if arguments.root else []
    data += [f"evaluator.checkpoint={arguments.evaluator}"] if arguments.evaluator else []
    paths = [f"paths.outputs={arguments.out}/seed{seed}", f"paths.cache={arguments.out}/cache"]
    go = partial(command, arguments, log_file(arguments, name, seed))
    begun = begun_run(runs)
    if begun is None or read_status(begun).get("status") != "finished":
        print(f"{name}, seed {seed}: training", flush=True)
        train = [f"experiment={name}", "scale=small", f"seed={seed}", "trainer=cpu"]
        train += ["trainer.enable_progress_bar=false", *data, *paths, *arguments.overrides]
        if not go("train", *train, *([] if begun is None else ["resume=true"])):
            return False
    trained = begun_run(runs)
    assert trained is not None
    evaluation = trained / "evaluation"
    if not (evaluation / "evaluation.json").is_file():
        shutil.rmtree(evaluation, ignore_errors=True)  # it was interrupted
        seeds = f"seeds={arguments.sampling_seeds}"
        where = [f"weights={trained}", f"out={evaluation}", "reference_frames=0"]
        if not go("evaluate", *where, seeds, *data, *paths):
            return False
    print(f"{name}, seed {seed}: done", flush=True)
    return True


def begun_run(runs: Path) -> Path | None:
    """Return the newest run in a folder that has started to train."""
    return max((path.parent for path in runs.glob("*/config.yaml")), default=None)


def log_file(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    return Path(arguments.out) / f"seed{seed}" / f"{name}.log"


def command(arguments: argparse.Namespace, log: Path, name: str, *settings: str) -> bool:
    """Run one of the package's commands with its output in a file; return whether it succeeded."""
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    with log.open("a") as file:
        process = subprocess.run(
            [sys.executable, "-m", f"iclevr_diffusion.{name}", *settings],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return process.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
