"""Trainings in processes of their own, kept and resumed by their folders."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from iclevr_diffusion.evaluation.results import EVALUATION
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.status import read_status

REAL = "data/iclevr"


def parser(doc: str) -> argparse.ArgumentParser:
    """Return an argument parser with the options that all such benchmarks have."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = REAL if (Path(REAL) / "train.json").is_file() else None
    help = f"the course's data ({REAL} where it is there; else synthetic frames)"
    result.add_argument("--root", type=folder, default=root, help=help)
    result.add_argument("--jobs", type=int, default=2, help="trainings at once (2)")
    result.add_argument("overrides", nargs="*", help="settings of all trainings, after --")
    return result


def folder(path: str) -> str:
    """Return the path of a folder; ``argparse`` reports any other."""
    if not Path(path).is_dir():
        raise argparse.ArgumentTypeError(f"{path} is not a folder")
    return path


def refuse(line: str) -> NoReturn:
    """End the program with a line, and the exit code of bad input."""
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def refuse_another_command(out: Path, command: dict[str, Any]) -> None:
    """Check that the trainings of a folder have the same settings, since finished ones are kept.

    Args:
        out: the folder of all trainings.
        command: the arguments that they share.
    """
    path = out / "command.json"
    if path.is_file() and json.loads(path.read_text("utf-8")) != command:
        refuse(f"{out} is of another command ({path}); name another --out")
    write_text(path, json.dumps(command, indent=2) + "\n")


def train_and_evaluate(
    folder: Path, jobs: int, train: Sequence[str], evaluate: Sequence[str] | None
) -> Path | None:
    """Train in a folder, or resume there, and evaluate; finished parts are kept.

    Args:
        folder: the folder of the training alone; its log is beside it.
        jobs: trainings that run at once.
        train: settings of the training.
        evaluate: settings of the evaluation; None for none.

    Returns:
        The folder of the run; None if a part failed.
    """
    begun = begun_run(folder)
    if begun is None or read_status(begun).get("status") != "finished":
        print(f"{folder}: training", flush=True)
        words = [*train, f"paths.outputs={folder}", *([] if begun is None else ["resume=true"])]
        if not run_python(folder, jobs, "-m", "iclevr_diffusion.train", *words):
            return None
    trained = begun_run(folder)
    assert trained is not None
    evaluation = trained / "evaluation"
    if evaluate is not None and not (evaluation / EVALUATION).is_file():
        shutil.rmtree(evaluation, ignore_errors=True)  # it was interrupted
        words = [f"weights={trained}", f"out={evaluation}", "reference_frames=0", *evaluate]
        if not run_python(folder, jobs, "-m", "iclevr_diffusion.evaluate", *words):
            return None
    return trained


def begun_run(folder: Path) -> Path | None:
    """Return the newest run in a folder that has started to train."""
    return max((path.parent for path in folder.glob("*/*/config.yaml")), default=None)


def report_failed(folders: Sequence[Path]) -> None:
    """Print the last line of the log of each training that failed."""
    for failed in folders:
        log = log_file(failed)
        last = log.read_text("utf-8", errors="replace").rstrip().rpartition("\n")[2]
        print(f"failed: {log}: {last}", file=sys.stderr)


def log_file(folder: Path) -> Path:
    """Return the log of the training in a folder."""
    return folder.with_name(f"{folder.name}.log")


def run_python(folder: Path, jobs: int, *words: str) -> bool:
    """Run Python with its output in the log of a folder, and return whether it succeeded."""
    log = log_file(folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with log.open("a") as file:
        return not subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode


def report(out: Path, title: str, folders: Sequence[Path]) -> int:
    """Write the page of the runs in folders, if any, to ``out/report``; return the exit code."""
    if not folders:
        return 1
    shutil.rmtree(out / "report", ignore_errors=True)  # of an earlier command
    words = [*map(str, folders), f"out={out}/report", f"title={title}"]
    command = [sys.executable, "-m", "iclevr_diffusion.report", *words]
    return subprocess.run(command, check=False).returncode
