"""Another reader of the pictures: a ResNet18 as the course's, trained on real frames alone.

    python benchmarks/second_reader.py --root data/iclevr --out reader.pth --bf16
    python -m iclevr_diffusion.evaluate data.root=data/iclevr evaluator.checkpoint=reader.pth

Our own evaluator has chosen checkpoint, sampler and guidance, and has learned from blurred and
noisy frames as well. This one has chosen nothing, has another architecture, and has seen neither
blur nor synthetic frames: its training frames are shifted, mirrored, and a little brighter or
darker. So it tells whether the figures are those of one reader alone. A tenth of the sequences is
held out, the one that our own evaluator's training holds out.
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
from iclevr_diffusion.data.datamodule import FrameLoader, split_by_sequence
from iclevr_diffusion.data.frames import Frames, to_unit_range
from iclevr_diffusion.examination import examine
from iclevr_diffusion.files import written_whole
from iclevr_diffusion.labels import NUM_LABELS
from iclevr_diffusion.nets.evaluator import CourseEvaluator

HELD_OUT = 0.1
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


def train(
    frames: Frames, indices: Tensor, epochs: int, bf16: bool, device: torch.device
) -> nn.Module:
    """A ResNet18 with 24 sigmoid outputs, trained on those frames."""
    net = resnet18(weights=None)
    net.fc = nn.Sequential(nn.Linear(512, NUM_LABELS), nn.Sigmoid())
    net = net.to(device, memory_format=torch.channels_last)
    progress = [0]
    loader = FrameLoader(
        frames, indices, BATCH_SIZE, shuffle=True, progress=lambda: (progress[0], 0)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * len(loader), pct_start=0.15
    )
    for epoch in range(epochs):
        progress[0] = epoch
        total = 0.0
        for batch in loader:
            images = moved(to_unit_range(batch.images.to(device)))
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                scores = net(images)
            loss = F.binary_cross_entropy(scores.float(), batch.labels.to(device))
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(loader):.4f}", flush=True)
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
    frames = choose_source(options.root, 64, "outputs/cache", 1, 0).frames()
    training, held_out = split_by_sequence(frames.sequences, HELD_OUT)
    start = time.perf_counter()
    net = train(frames, training, options.epochs, options.bf16, device)
    minutes = (time.perf_counter() - start) / 60
    with written_whole(options.out) as partial:
        torch.save({"model": net.state_dict()}, partial)
    judge = CourseEvaluator(options.out).to(device)
    rest = Frames(
        frames.images[held_out],
        frames.labels[held_out],
        frames.sequences[held_out],
        [frames.names[index] for index in held_out.tolist()],
    )
    figures = examine(judge, rest)
    shown = ("frames", "accuracy", "image_accuracy", "exact_set", "missing", "extra")
    print(table([{key: figures[key] for key in shown}]))
    made = {
        "reader": judge.name,
        "trained_on": f"{len(training)} real frames, {options.epochs} epochs",
        "seed": options.seed,
        "minutes": round(minutes, 1),
        "precision": "bf16-mixed" if options.bf16 else "32-true",
        "held_out": figures,
        "machine": here,
    }
    leave(made, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
