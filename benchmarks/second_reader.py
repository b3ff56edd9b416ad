"""Another reader of the pictures: a ResNet18 like the course's, trained on real frames alone.

    python benchmarks/second_reader.py --root data/iclevr --out reader.pth --bf16
    python -m iclevr_diffusion.evaluate data.root=data/iclevr evaluator.checkpoint=reader.pth

Our own evaluator has chosen checkpoint, sampler and guidance, and has learned from blurred and
noisy frames as well. This one has chosen nothing, has another architecture, and has seen neither
blur nor synthetic frames: its training frames are shifted, mirrored, and a little brighter or
darker. So it tells whether the figures are those of one reader alone. It is read on what our own
evaluator is: the same held-out tenth of the sequences, spoilt as well, and synthetic frames, of
which ``crowded`` shows four and five objects. A checkpoint that is there is read, not trained anew.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from common import leave, machine, parser, table
from iclevr_diffusion.build import choose_device, choose_source
from iclevr_diffusion.data.datamodule import FrameLoader
from iclevr_diffusion.data.evaluator_data import EvaluatorData
from iclevr_diffusion.data.frames import to_unit_range
from iclevr_diffusion.examination import examine, spoilt
from iclevr_diffusion.files import written_whole
from iclevr_diffusion.labels import NUM_LABELS
from iclevr_diffusion.nets.evaluator import CourseEvaluator

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
SHIFT = 3  # pixels


def moved(images: Tensor) -> Tensor:
    """The batch, shifted and perhaps mirrored, each picture a little brighter or darker."""
    height, width = images.shape[2:]
    images = F.pad(images, (SHIFT,) * 4, mode="replicate")
    top, left = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    images = images[:, :, top : top + height, left : left + width]
    if torch.rand(()) < 0.5:
        images = images.flip(3)
    gain, bias = (torch.rand(2, len(images), 1, 1, 1) - 0.5).to(images.device)
    return images * (1 + 0.1 * gain) + 0.05 * bias


def train(loader: FrameLoader, epochs: int, bf16: bool, device: torch.device) -> nn.Module:
    """A ResNet18 with 24 sigmoid outputs, trained on the loader's frames."""
    net = resnet18(weights=None)
    net.fc = nn.Linear(512, NUM_LABELS)  # logits: a sigmoid in bfloat16 rounds to one
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * len(loader), pct_start=0.15
    )
    for epoch in range(epochs):
        loader.progress = lambda epoch=epoch: (epoch, 0)
        total = 0.0
        for batch in loader:
            images = moved(to_unit_range(batch.images.to(device)))
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = net(images)
            loss = F.binary_cross_entropy_with_logits(logits.float(), batch.labels.to(device))
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(loader):.4f}", flush=True)
    net.fc = nn.Sequential(net.fc, nn.Sigmoid())
    return net


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--root", required=True, help="the course's data")
    arguments.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    arguments.add_argument("--epochs", type=int, default=9, help="(9)")
    arguments.add_argument("--seed", type=int, default=0, help="(0)")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--bf16", action="store_true", help="train in bfloat16 autocast")
    options = arguments.parse_args()
    device = choose_device(options.device)
    here = machine(device)
    torch.manual_seed(options.seed)
    source = choose_source(options.root, 64, "outputs/cache", 1, 0)
    data = EvaluatorData(source, "real", batch_size=BATCH_SIZE, seed=options.seed)
    data.setup("fit")
    minutes = None
    if not options.out.exists():
        start = time.perf_counter()
        net = train(data.train_dataloader(), options.epochs, options.bf16, device)
        minutes = round((time.perf_counter() - start) / 60, 1)
        with written_whole(options.out) as partial:
            torch.save({"model": net.state_dict()}, partial)
    judge = CourseEvaluator(options.out).to(device)
    sets = data.held_out | {"spoilt": spoilt(data.held_out["real"])}
    held_out = {name: examine(judge, frames) for name, frames in sets.items()}
    shown = ("frames", "accuracy", "exact_set", "missing", "extra")
    print(table([{"set": k} | {key: v[key] for key in shown} for k, v in held_out.items()]))
    made = {
        "reader": judge.name,
        "trained_on": f"{data.frames_to_learn_from} real frames, {options.epochs} epochs",
        "seed": options.seed,
        "minutes": minutes,
        "precision": "bf16-mixed" if options.bf16 else "32-true",
        "held_out": held_out,
        "machine": here,
    }
    leave(made, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
