"""Generate images with outer objects of unclear shape, to train the evaluator with.

    python benchmarks/unclear_images.py benchmarks/unclear_images --name best_2cores \
        --weights outputs/best/… --unclear cube
    python benchmarks/unclear_images.py benchmarks/unclear_images --name quickstart \
        --weights outputs/quickstart/… --unclear cube sphere cylinder

Look at images of the weights first: outer objects of the shapes named are labelled as unclear,
other outer objects as unknown, and the first object, in the center of the frame, as clear, or as
unknown with --first-unknown. The label sets are random triples. The first object is recognized by
its position.
"""

import sys
from pathlib import Path

import torch

from common import parser
from iclevr_diffusion.data.labels import ICLEVR_LABELS, SHAPES
from iclevr_diffusion.data.unclear import write_unclear_images
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.rng import image_generators, keyed_generator


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--weights", default="pretrained")
    arguments.add_argument("--unclear", nargs="+", choices=SHAPES, required=True)
    arguments.add_argument("--first-unknown", action="store_true")
    arguments.add_argument("--images", type=int, default=320, help="(320)")
    arguments.add_argument("--seed", type=int, default=0, help="(0)")
    options = arguments.parse_args()
    model = load_model(options.weights)
    assert isinstance(model, Model)
    triples = ICLEVR_LABELS.all_sets(3)
    order = torch.randperm(len(triples), generator=keyed_generator("unclear", options.seed))
    labels = ICLEVR_LABELS.encode_all(
        [triples[index] for index in order[: options.images].tolist()]
    )
    pipeline, generators = (
        model.pipeline(),
        image_generators(options.seed, range(len(labels)), "unclear"),
    )
    positions = pipeline.sample_positions(labels, generators)
    assert positions is not None
    images = pipeline(labels, generators, positions=positions)
    is_first = (positions[..., :2] - model.net.layout.first).abs().amax(-1) < 1e-4
    entries = []
    for row, first in zip(labels, is_first, strict=True):
        outer = ICLEVR_LABELS.decode(row * ~first)
        unclear = [name for name in outer if name.split()[1] in options.unclear]
        unknown = [name for name in outer if name not in unclear]
        if options.first_unknown:
            unknown += ICLEVR_LABELS.decode(row * first)
        entries.append(
            {"labels": list(ICLEVR_LABELS.decode(row)), "unclear": unclear, "unknown": unknown}
        )
    write_unclear_images(options.folder, options.name, to_uint8(images), entries)
    print(f"{len(entries)} images in {options.folder / options.name}.webp")
    return 0


if __name__ == "__main__":
    sys.exit(main())
