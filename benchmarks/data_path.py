"""Frames per second: rendered, loaded from memory, and decoded from PNG files in workers.

    python benchmarks/data_path.py --json benchmarks/results/data_path_2cores.json

The workers do what the loaders of the lab reports do: a torch DataLoader whose processes, one per
core, open PNGs of 320 x 240 pixels with Pillow, resize them to 64 x 64 and scale them to [-1, 1].
"""

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from common import leave, machine, parser, table
from iclevr_diffusion.data.loader import FrameLoader
from iclevr_diffusion.data.synthetic.dataset import Synthetic, synthetic_frames
from iclevr_diffusion.data.types import to_unit_range


def rendering(sequences: int) -> float:
    """Return the frames per second of the renderer, without writing the cache."""
    start = time.perf_counter()
    frames = synthetic_frames(sequences)
    return len(frames) / (time.perf_counter() - start)


def loading(sequences: int, batch_size: int, seconds: float = 5.0) -> float:
    """Return the frames per second in shuffled batches, scaled to [-1, 1] in float32."""
    with TemporaryDirectory() as cache:
        source = Synthetic(sequences, cache=cache)
        source.prepare_data()
        frames = source.load_frames()
        loader = FrameLoader(frames, torch.arange(len(frames)), batch_size, shuffle=True)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for batch in loader:
                to_unit_range(batch.images)
                count += len(batch.images)
        return count / (time.perf_counter() - start)


class PNGs(Dataset[Tensor]):
    """The PNG files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            small = image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        return to_unit_range(pil_to_tensor(small))


def decoding(count: int, batch_size: int, workers: int) -> float:
    """Return the frames per second from PNG files in shuffled batches, with running workers."""
    with TemporaryDirectory() as folder:
        for index, image in enumerate(synthetic_frames(-(-count // 3)).images[:count]):
            full_size = to_pil_image(image).resize((320, 240), Image.Resampling.BICUBIC)
            full_size.save(Path(folder) / f"{index:06d}.png")
        loader = DataLoader(
            PNGs(Path(folder)), batch_size, shuffle=True, num_workers=workers, drop_last=True
        )
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        frames = sum(len(batch) for batch in batches)
        return frames / (time.perf_counter() - start)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sequences", type=int, default=1000)
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = arguments.parse_args()
    rendering(20)  # warm up
    loaded = loading(options.sequences, options.batch_size)
    decoded = decoding(3 * options.sequences, options.batch_size, options.workers)
    figures = {
        "rendered_frames_per_second": round(rendering(options.sequences)),
        "loaded_frames_per_second": round(loaded),
        "decoded_frames_per_second": round(decoded),
        "loaded_over_decoded": round(loaded / decoded, 1),
        "image_size": 64,
        "batch_size": options.batch_size,
        "workers": options.workers,
    }
    print(table([figures]))
    leave(figures | {"machine": machine(torch.device("cpu"))}, options.json)


if __name__ == "__main__":
    main()
