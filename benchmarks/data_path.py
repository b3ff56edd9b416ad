"""Frames a second: rendered, and from memory to the training step.

usage: python benchmarks/data_path.py [--sequences N] [--batch-size B] [--json FILE]
"""

import argparse
import json
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from iclevr_diffusion.data.datamodule import FrameLoader
from iclevr_diffusion.data.frames import to_unit_range
from iclevr_diffusion.data.synthetic import Synthetic, synthetic_frames


def rendering(sequences: int) -> float:
    """Frames a second of the renderer, cache writing not counted."""
    start = time.perf_counter()
    frames = synthetic_frames(sequences)
    return len(frames) / (time.perf_counter() - start)


def loading(sequences: int, batch_size: int, seconds: float = 5.0) -> float:
    """Frames a second, shuffled, cut into batches, scaled to [-1, 1] in float32."""
    with TemporaryDirectory() as cache:
        source = Synthetic(sequences, cache=cache)
        source.prepare()
        frames = source.frames()
        loader = FrameLoader(frames, torch.arange(len(frames)), batch_size, shuffle=True)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for batch in loader:
                to_unit_range(batch.images)
                count += len(batch.images)
        return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rendering(20)  # warm up
    figures = {
        "rendered_frames_per_second": round(rendering(arguments.sequences)),
        "loaded_frames_per_second": round(loading(arguments.sequences, arguments.batch_size)),
        "image_size": 64,
        "batch_size": arguments.batch_size,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
