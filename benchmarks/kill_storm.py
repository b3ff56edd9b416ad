"""Kill a training again and again, resume it each time, and compare it with an uninterrupted one.

    python benchmarks/kill_storm.py --kills 50 --json benchmarks/results/kill_storm.json

Two real runs of ``iclevr_diffusion.train`` with a tiny network and few frames: one is not
disturbed, the other gets SIGTERM, SIGINT or SIGKILL at random moments after its first checkpoint
and is resumed. To save time, it is forked from a process that has imported the packages; every
tenth time it is a new Python process, and the signal comes at any moment from its start. All
results of the two are compared bit by bit: weights, averaged weights, optimizer, best checkpoint,
published weights, images, and logged metrics except speeds. The exit code is 1 if anything differs.
"""

import collections
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from common import leave, machine, parser
from iclevr_diffusion import train
from iclevr_diffusion.training.loggers import read_metrics

SETTINGS = (
    "net=tiny",
    "net.dropout=0.1",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.accumulate_grad_batches=2",
    "guidance=cfg",
    "optimizer.decay=cosine",
    "data.image_size=32",
    "data.sequences=20",
    "data.batch_size=2",
    "data.val_fraction=0.2",
    "schedule.timesteps=20",
    "sampler=ddpm",
    "callbacks.scoring.every_n_epochs=4",
    "callbacks.scoring.sampler.steps=4",
    "callbacks.checkpoint.every_n_steps=3",
)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGKILL)
EXIT_CODES = {
    signal.SIGTERM: {
        128 + signal.SIGTERM,
        -signal.SIGTERM,
    },  # the second: before the training started
    signal.SIGINT: {128 + signal.SIGINT, 1, -signal.SIGINT},
    signal.SIGKILL: {-signal.SIGKILL},
}


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = storm(Path(folder), options.kills, options.epochs, options.seed)
    print(json.dumps(report, indent=2))
    leave(report, options.json)
    return int(report["different"] != [] or report["kills"] < options.kills)


def storm(folder: Path, kills: int, epochs: int, seed: int) -> dict[str, Any]:
    """Run both, and report how they compare."""
    start = time.monotonic()
    calm, stormy = folder / "calm", folder / "stormy"
    finish(command(calm, epochs))
    seconds = trained_seconds(calm)

    moments = random.Random(seed)
    log = []
    while len(log) < kills:
        signum = moments.choice(SIGNALS)
        arguments = command(stormy, epochs)
        if (run_of(stormy) / "config.yaml").is_file():
            arguments.append("resume=true")
        before = state(stormy)
        fresh = len(log) % 10 == 9
        process = multiprocessing.get_context("fork").Process(target=run, args=(arguments, fresh))
        process.start()
        begun = time.monotonic()
        if fresh:
            time.sleep(moments.uniform(0, 15))
        else:
            while state(stormy) == before and process.is_alive():
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1.2 * seconds / kills))
        with suppress(ProcessLookupError):  # it finished just now
            os.kill(process.pid, signum)
        process.join(600)
        if process.exitcode == 0:
            break  # it finished first
        if process.exitcode not in EXIT_CODES[signum]:
            raise RuntimeError(f"exit code {process.exitcode} after {signum}")
        log.append(
            {
                "signal": signal.Signals(signum).name,
                "seconds": round(time.monotonic() - begun, 1),
                "fresh_python": fresh,
                "exit_code": process.exitcode,
                **progress(stormy),
            }
        )
        print(json.dumps(log[-1]), file=sys.stderr, flush=True)
    finish([*command(stormy, epochs), "resume=true"])
    different = differences(contents(run_of(calm)), contents(run_of(stormy)))
    left = [str(path.relative_to(stormy)) for path in stormy.rglob(".*.partial")]
    return {
        "kills": len(log),
        "signals": collections.Counter(kill["signal"] for kill in log),
        "checkpoints_within_an_epoch": sum(bool(kill.get("within_epoch")) for kill in log),
        "different": different,
        "left_over_files": left,
        "compared": sorted(contents(run_of(calm))),
        "steps": progress(calm)["steps"],
        "seconds_unbroken": round(seconds, 1),
        "seconds_in_all": round(time.monotonic() - start),
        "seed": seed,
        "machine": machine(torch.device("cpu")),
        "log": log,
    }


def command(folder: Path, epochs: int) -> list[str]:
    return [*SETTINGS, f"paths.outputs={folder}", f"trainer.max_epochs={epochs}", "name=run"]


def run(arguments: list[str], fresh: bool) -> None:
    """Run the command with these arguments in this process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    if fresh:
        words = [sys.executable, "-m", "iclevr_diffusion.train", *arguments]
        os.execv(sys.executable, words)
    sys.argv[1:] = arguments
    train.main()


def finish(arguments: list[str]) -> None:
    process = multiprocessing.get_context("fork").Process(target=run, args=(arguments, False))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"exit code {process.exitcode}: {' '.join(arguments)}")


def run_of(folder: Path) -> Path:
    """Return the only run folder, or a path that does not exist yet."""
    runs = [path.parent for path in (folder / "run").glob("*/config.yaml")]
    if len(runs) > 1:
        raise RuntimeError(f"one run became several: {runs}")
    return runs[0] if runs else folder / "run" / "none"


def state(folder: Path) -> int | None:
    path = run_of(folder) / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime_ns if path.is_file() else None


def progress(folder: Path) -> dict[str, Any]:
    path = run_of(folder) / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return {}
    found = torch.load(path, weights_only=True)["progress"]
    return {"steps": found["steps"], "within_epoch": not found["epoch_ended"]}


def trained_seconds(folder: Path) -> float:
    return float(json.loads((run_of(folder) / "summary.json").read_text())["seconds_this_process"])


def contents(folder: Path) -> dict[str, Any]:
    """Return all results of a run that must not depend on how often it was stopped."""
    result: dict[str, Any] = {}
    for name in ("last", "best"):
        checkpoint = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        # Times, and the counters of Lightning's loops.
        del checkpoint["callbacks"]["Limits"], checkpoint["loops"]
        result[f"checkpoints/{name}.ckpt"] = checkpoint
    result["metrics.csv"] = [
        {key: value for key, value in row.items() if "per_second" not in key}
        for row in read_metrics(folder / "metrics.csv")
    ]
    for path in [*folder.glob("images/*.png"), *folder.glob("weights/**/*.*")]:
        # The curves show the speed, too.
        if path.is_file() and path.name != "curves.png":
            result[str(path.relative_to(folder))] = path.read_bytes()
    return result


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Return the paths at which two nested contents differ."""
    if type(ours) is not type(theirs):
        return [where]
    if isinstance(ours, dict):
        keys = sorted({*ours, *theirs}, key=str)
        missing = object()
        pairs = [(f"{where}/{k}", ours.get(k, missing), theirs.get(k, missing)) for k in keys]
        return [found for path, a, b in pairs for found in differences(a, b, path)]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [f"{where} ({len(ours)} and {len(theirs)} entries)"]
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
        return [found for path, a, b in pairs for found in differences(a, b, path)]
    same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return [] if same else [where]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
