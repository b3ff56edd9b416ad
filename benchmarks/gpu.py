"""The first measurements on a large GPU, in one command: four minutes, one JSON file.

    make bench-gpu ARGS='--root data/iclevr'
    make bench-gpu ARGS='--root data/iclevr --minutes 9'
    PYTHONPATH=src python benchmarks/gpu.py      # uninstalled: it needs no wandb
    python benchmarks/gpu.py --rehearse          # the same path on a CPU: tiny networks, few steps

The programs run one after another, the most important first: training of the flagship in large
batches and its accuracy over time; the training step of the flagship and of the reports' network;
sampling; the reports' network compiled. A part that fails or has no time left is listed with its
last output, and the figures of the others are kept: the file is rewritten after each part. The run
folder of the training is beside it. Its network is larger than that of ``best``: 7.0 M parameters.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import leave, machine, parser
from iclevr_diffusion.utils.environment import choose_device

HERE = Path(__file__).parent
TOO_SHORT = 15.0  # seconds in which no part gets anywhere
SHARE = 0.17  # of the time, at most, for each part but the training
LARGE = ["net.channels=[96,192]", "net.blocks=[2,2]"]
BATCHES = ["data.batch_size=256", "optimizer.matrix_lr=1e-2", "optimizer.lr=3e-3"]
TINY = {
    "best": ["net.channels=[8,16]", "net.blocks=[1,1]", "net.width=32", "net.depth=1"],
    "cosine_eps": ["net=tiny"],
}


@dataclass(frozen=True)
class Part:
    """A command of at most ``limit`` seconds, and the file with its figures."""

    name: str
    limit: float
    figures: Path
    command: list[str]

    def run(self, left: float) -> dict[str, Any]:
        """Run the command and return its figures and its seconds, or why it failed."""
        if left < TOO_SHORT:
            return {"failed": "no time was left"}
        start = time.perf_counter()
        code, output = run_command([sys.executable, *self.command], min(self.limit, left))
        result: dict[str, Any] = {"part_seconds": round(time.perf_counter() - start, 1)}
        if self.figures.is_file():
            result |= json.loads(self.figures.read_text("utf-8"))
        if code != 0:
            ended = "stopped: its time was over" if code is None else f"exit code {code}"
            result["failed"] = f"{ended}: {' | '.join(output.strip().splitlines()[-3:])[-600:]}"
        return result


def run_command(command: list[str], limit: float) -> tuple[int | None, str]:
    """Run a command, and end it with all processes that it started.

    Returns:
        Its exit code, None if it took longer than ``limit`` seconds, and its output.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="the course's data; else synthetic frames")
    arguments.add_argument("--minutes", type=float, default=4.0, help="in all (4)")
    arguments.add_argument("--rehearse", action="store_true")
    options = arguments.parse_args()
    folder = Path("outputs/bench_gpu", time.strftime("%Y-%m-%d_%H-%M-%S"))
    folder.mkdir(parents=True)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the running part is ended, too
    device = choose_device("cpu" if options.rehearse else "cuda")
    start = time.perf_counter()
    figures: dict[str, Any] = {"machine": machine(device)}
    total = 60 * options.minutes
    for part in parts(folder, total, options.root, options.rehearse):
        one = figures[part.name] = part.run(total - (time.perf_counter() - start))
        print(f"{part.name}: {one.get('failed', 'done')}", flush=True)
        leave(figures, options.json or folder / "gpu.json")
    return int(any("failed" in one for one in figures.values()))


def parts(folder: Path, total: float, root: str | None, rehearse: bool) -> list[Part]:
    """Return all parts in their order.

    Args:
        folder: for their files.
        total: seconds of all parts.
        root: of the course's data; None for synthetic frames.
        rehearse: on a CPU, with tiny networks.
    """
    lists = [] if root is None else ["--root", root]
    trainer = "trainer=cpu" if rehearse else "trainer=gpu"
    device = ["--device", "cpu" if rehearse else "cuda"]
    rounds = ["--steps", "2", "--rounds", "2"] if rehearse else ["--steps", "30", "--rounds", "3"]
    few = ["--seeds", "1"] if rehearse else []

    def settings(experiment: str) -> list[str]:
        tiny = [*TINY[experiment], "data=synthetic", "data.sequences=100"] if rehearse else []
        return [trainer, *([*LARGE, *BATCHES] if experiment == "best" else []), *tiny]

    def program(name: str, file: str, *words: str) -> Part:
        figures = folder / f"{name}.json"
        return Part(
            name, SHARE * total, figures, [str(HERE / file), "--json", str(figures), *words]
        )

    def step(name: str, experiment: str, *more: str) -> Part:
        these = ["data.sequences=6000", *settings(experiment), *more]
        return program(name, "training_step.py", *rounds, "--experiment", experiment, "--", *these)

    run = folder / "run"
    training = ["-m", "iclevr_diffusion.train", "experiment=best", *settings("best")]
    training += [f"hydra.run.dir={run}", f"trainer.max_time={duration(0.28 * total)}"]
    training += ["trainer.enable_progress_bar=false", "callbacks.scoring.every_n_epochs=0"]
    kept = 1 if rehearse else 10  # of as many epochs as fit into the time
    training += [f"trainer.max_epochs={2 if rehearse else 60}"]
    training += [f"callbacks.checkpoint.keep_every_n_epochs={kept}"]
    training += [] if root is None or rehearse else [f"data.root={root}"]
    slow = "ddpm:10:own" if rehearse else "ddpm:1000:own"
    sampling = ["--settings", "own", slow, "--slow-seeds", "1", *few, *device, *lists]
    sampling += ["--no-lab"] if rehearse else []
    compiled = [] if rehearse else [step("step_lab_compiled", "cosine_eps", "compile=true")]
    return [
        Part("training", 0.4 * total, run / "summary.json", training),
        program("time_to_accuracy", "time_to_accuracy.py", str(run), *lists, *few, *device),
        step("step_best", "best"),
        step("step_lab", "cosine_eps"),
        program("sampling", "sampling.py", *sampling),
        *compiled,
    ]


def duration(seconds: float) -> str:
    """Return DD:HH:MM:SS, as ``trainer.max_time`` takes it; ``seconds`` of less than an hour."""
    return f"00:00:{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


if __name__ == "__main__":
    sys.exit(main())
