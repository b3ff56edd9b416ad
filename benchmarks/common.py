"""Functions shared by the benchmarks: configs, timing, a description of the machine, JSON files."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.schema import Train
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.evaluation import evaluation_report
from iclevr_diffusion.utils.environment import device_name, versions
from iclevr_diffusion.utils.files import write_text


def parser(doc: str) -> argparse.ArgumentParser:
    """Return an argument parser for a program with the docstring ``doc`` and the option --json."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, help="write the figures to this file")
    return result


def experiment_config(name: str, overrides: list[str]) -> DictConfig:
    """Compose the config of ``python -m iclevr_diffusion.train experiment=NAME …``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={name}", *overrides])
    check_config(cfg, Train)
    return cfg


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine: device, cores, load, system and versions."""
    return {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_at_the_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "versions": versions(),
    }


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the shortest of ``repeats`` timings of a call, after a warm-up."""
    times = []
    for number in range(repeats + 1):
        wait_for(device)
        start = time.perf_counter()
        call()
        wait_for(device)
        if number:
            times.append(time.perf_counter() - start)
    return min(times)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations per second of large matrix products of random numbers."""
    best = 0.0
    for size in (2048,) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device, 10))
    return best


def table(rows: list[dict[str, Any]]) -> str:
    """Format rows with the same keys as a Markdown table."""
    return "\n".join(evaluation_report.table(rows[0], (map(str, row.values()) for row in rows)))


def leave(figures: dict[str, Any], path: Path | None) -> None:
    """Write the figures to a JSON file, if there is a path."""
    if path is not None:
        write_text(path, json.dumps(figures, indent=2) + "\n")
        print(path)
