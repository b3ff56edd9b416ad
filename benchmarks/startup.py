"""Startup time and memory of the commands, compared with ``import torch``.

    python benchmarks/startup.py --repeats 5 --json benchmarks/results/startup.json

Each command is a separate process. They take turns, so that other load on the machine affects all
of them alike; the first turn, which fills the disk cache, is not counted. On a machine that is not
idle, the ratios to ``import torch`` are the most reliable figures.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import leave, machine, parser, table

BASELINE = "import torch"
COMMANDS = ("train", "train_evaluator", "sample", "evaluate", "report")


class Start(NamedTuple):
    """One process, from its start to its end.

    Attributes:
        seconds: wall time.
        cpu_seconds: of all its threads, user and system.
        megabytes: peak resident memory.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float


# A small process starts each program: the peak memory of a child includes that of its parent, and
# this process has imported torch.
STARTER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
figures = [seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]
print(json.dumps(figures), file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(words: Sequence[str]) -> Start:
    """Run Python with the arguments ``words``.

    Raises:
        SystemExit: it failed.
    """
    starter = [sys.executable, "-S", "-c", STARTER, *words]
    done = subprocess.run(starter, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr.strip()}")
    seconds, cpu_seconds, peak = json.loads(done.stderr.splitlines()[-1])
    unit = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
    return Start(seconds, cpu_seconds, peak * unit / 1e6)


def programs(out: Path) -> dict[str, list[str]]:
    """Return the arguments for Python by program; images are written to the new folder ``out``."""
    helps = {f"{name} --help": ["-m", f"iclevr_diffusion.{name}", "--help"] for name in COMMANDS}
    sample = ["-m", "iclevr_diffusion.sample", "labels='red cube'", "n=1", f"out='{out}'"]
    return {BASELINE: ["-c", BASELINE], **helps, "sample n=1": sample}


def row(name: str, starts: Sequence[Start], baseline: Sequence[Start]) -> dict[str, Any]:
    """Return the figures of one program as a row of a table."""
    seconds = [start.seconds for start in starts]
    cpu = statistics.median(start.cpu_seconds for start in starts)
    return {
        "program": name,
        "seconds": round(statistics.median(seconds), 2),
        "min": round(min(seconds), 2),
        "max": round(max(seconds), 2),
        "of import torch": round(
            statistics.median(seconds) / statistics.median(b.seconds for b in baseline), 2
        ),
        "CPU seconds": round(cpu, 2),
        "MB": round(max(start.megabytes for start in starts)),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=5, help="per program (5)")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        turns = [
            {name: measured(words) for name, words in programs(Path(folder, str(turn))).items()}
            for turn in range(arguments.repeats + 1)
        ][1:]
    starts = {name: [turn[name] for turn in turns] for name in turns[0]}
    rows = [row(name, starts[name], starts[BASELINE]) for name in starts]
    print(table(rows))
    figures = {
        "machine": machine(torch.device("cpu")),
        "repeats": arguments.repeats,
        "programs": rows,
    }
    leave(figures, arguments.json)


if __name__ == "__main__":
    main()
