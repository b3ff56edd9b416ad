"""Check that the memory of a long training does not grow.

    python benchmarks/memory.py --steps 2000 --scorings 20 --json benchmarks/results/memory.json

A tiny network is trained for ``--steps`` steps with checkpoints and ``--scorings`` scorings. The
resident memory of the process is measured after each scoring. It varies with what the allocator
returns to the system; a leak would raise the minimum. The exit code is 1 if the minimum of the
second half is more than 10 MB above that of the first.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch

from common import leave, machine, parser
from iclevr_diffusion import train
from iclevr_diffusion.training.callbacks import checkpoint
from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints

SETTINGS = (
    "net=tiny",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "data.image_size=32",
    "data.sequences=40",
    "data.batch_size=2",
    "data.val_fraction=0.2",
    "schedule.timesteps=20",
    "sampler.steps=2",
    "callbacks.scoring.sampler.steps=2",
    "name=memory",
)
BATCHES_PER_EPOCH = 48  # 32 sequences of three frames


def resident_megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument("--scorings", type=int, default=20)
    options = arguments.parse_args()
    epochs = -(-options.steps // BATCHES_PER_EPOCH)
    every = max(1, epochs // options.scorings)
    readings: list[float] = []

    class Watched(Checkpoints):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            if (trainer.current_epoch + 1) % every == 0:
                gc.collect()
                readings.append(round(resident_megabytes(), 1))

    checkpoint.Checkpoints = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv[1:] = [
            *SETTINGS,
            f"paths.outputs={folder}",
            f"trainer.max_epochs={epochs}",
            f"callbacks.scoring.every_n_epochs={every}",
        ]
        train.main()
    half = len(readings) // 2
    growth = min(readings[half:]) - min(readings[:half])
    report = {
        "steps": epochs * BATCHES_PER_EPOCH,
        "scorings": epochs // every,
        "resident_megabytes": readings,
        "growth_of_the_lowest_megabytes": round(growth, 1),
        "machine": machine(torch.device("cpu")),
    }
    print(json.dumps(report, indent=2))
    leave(report, options.json)
    return int(growth > 10)


if __name__ == "__main__":
    sys.exit(main())
