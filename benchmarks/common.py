"""What the benchmarks share: an experiment's config, the machine, the JSON that they leave."""

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
    """Arguments of a program whose docstring is ``doc``; each can leave a JSON."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, help="write the figures to this file")
    return result


def experiment_config(name: str, overrides: list[str]) -> DictConfig:
    """The config that ``python -m iclevr_diffusion.train experiment=NAME …`` would run with."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"experiment={name}", *overrides])
    check_config(cfg, Train)
    return cfg


def machine(device: torch.device) -> dict[str, Any]:
    """What figures of speed depend on, beside the settings."""
    return {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_at_the_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "versions": versions(),
    }


def wait_for(device: torch.device) -> None:
    """Return once the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Shortest of ``repeats`` timings of a call, after one that is not counted."""
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
    """Operations a second of the fastest of some large matrix products, on random numbers."""
    best = 0.0
    for size in (2048,) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = max(best, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device, 10))
    return best


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of the same keys, as Markdown."""
    return "\n".join(evaluation_report.table(rows[0], (map(str, row.values()) for row in rows)))


def leave(figures: dict[str, Any], path: Path | None) -> None:
    """Write the figures, if a file is wanted."""
    if path is not None:
        write_text(path, json.dumps(figures, indent=2) + "\n")
        print(path)
