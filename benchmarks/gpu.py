"""What a large GPU is asked first, in one command: under nine minutes, one JSON.

    make bench-gpu ARGS='--root data/iclevr --json benchmarks/results/gpu.json'
    python benchmarks/gpu.py --rehearse      # the same path on a CPU: tiny networks, a few steps

One program of this folder after another: the training step of the reports' network, plain and
compiled, and of the flagship; drawing; the flagship's accuracy over time. A part that fails, or
that has no time left, is named with its last words, and the others' figures are kept.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import leave, parser

HERE = Path(__file__).parent
TOTAL = 9 * 60.0
TRAINING = 150
ONE_PROCESS = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=50"]


class Part:
    """A command with a limit in seconds; it leaves its figures in a file, or none."""

    def __init__(self, name: str, limit: float, *command: str) -> None:
        self.name, self.limit, self.command = name, limit, list(command)

    def run(self, folder: Path, left: float) -> dict[str, Any]:
        """Its figures with the seconds it took, or why there are none."""
        figures = folder / f"{self.name}.json"
        command = [str(figures) if word == "FIGURES" else word for word in self.command]
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=min(self.limit, left),
                check=False,
            )
            ended, output = f"exit code {done.returncode}", done.stdout
        except subprocess.TimeoutExpired as error:
            ended, output = f"stopped after {error.timeout:.0f} s", str(error.stdout or "")
        result: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1)}
        if figures.is_file():
            result |= json.loads(figures.read_text("utf-8"))
        if ended != "exit code 0":
            result["failed"] = f"{ended}: {' | '.join(output.strip().splitlines()[-3:])[-600:]}"
        print(f"{self.name}: {result.get('failed', 'done')}, {result['seconds']} s", flush=True)
        return result


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--root", help="the course's data; else synthetic frames")
    arguments.add_argument("--rehearse", action="store_true")
    options = arguments.parse_args()
    start = time.perf_counter()
    figures = {}
    with TemporaryDirectory() as folder:
        for part in parts(Path(folder), options.root, options.rehearse):
            left = TOTAL - (time.perf_counter() - start)
            figures[part.name] = part.run(Path(folder), max(left, 1.0))
    leave(figures, options.json)
    return int(any("failed" in one for one in figures.values()))


def parts(folder: Path, root: str | None, rehearse: bool) -> list[Part]:
    where = [] if root is None else ["--root", root]
    data = [f"paths.cache={folder}/cache"] if root is None else [f"data.root={root}"]
    trainer = "trainer=cpu" if rehearse else "trainer=gpu"
    device = ["--device", "cpu" if rehearse else "cuda"]
    tiny = ["net=tiny", "data=synthetic", "data.sequences=100"] if rehearse else []
    short = ["--steps", "2", "--rounds", "2"] if rehearse else ["--steps", "50", "--rounds", "5"]
    run = folder / "run"
    length = ["trainer.max_epochs=2"] if rehearse else [f"trainer.max_time=00:00:00:{TRAINING}"]

    def step(name: str, *settings: str) -> Part:
        program = [str(HERE / "training_step.py"), "--json", "FIGURES", *short]
        return Part(name, 100, *program, *settings[:2], "--", trainer, *settings[2:], *tiny)

    lab = ("--experiment", "cosine_eps")
    draw = ["--settings", "own", "ddpm:10:own" if rehearse else "ddpm:1000:own"]
    draws = ["--draws", "1" if rehearse else "10", "--slow-draws", "1"]
    draws += ["--no-lab"] if rehearse else []
    compiled = [] if rehearse else [step("step_cosine_eps_compiled", *lab, "compile=true")]
    return [
        step("step_cosine_eps", *lab),
        *compiled,
        step("step_best", "--experiment", "best", "data.batch_size=256"),
        Part("sampling", 90, str(HERE / "sampling.py"), "--json", "FIGURES", *where, *draw, *draws,
             *device),
        Part("training", TRAINING + 60, "-m", "iclevr_diffusion.train", "experiment=best", trainer,
             f"hydra.run.dir={run}", "callbacks.checkpoint.keep_every_n_epochs=1",
             "callbacks.scoring.every_n_epochs=0", *length, *ONE_PROCESS, *data, *tiny),
        Part("time_to_accuracy", 90, str(HERE / "time_to_accuracy.py"), str(run), "--json",
             "FIGURES", *where, *device, *(["--draws", "1"] if rehearse else [])),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
