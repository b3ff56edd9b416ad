"""Compare evaluators with an observer, on enlarged crops of objects.

    python benchmarks/eye.py sheet outputs/eye --root data/iclevr --weights pretrained
    python benchmarks/eye.py table outputs/eye --json benchmarks/results/eye.json

``sheet`` writes pages of numbered crops of real held-out and generated images, shuffled. Look at
them one by one, write the shape of each object into ``answers.txt`` (ticks in the margins point at
it), and do not open ``key.json`` and ``images/`` until then. ``table`` refuses incomplete answers,
reads the key, classifies the whole images with the evaluators, and tabulates how often the eye and
each evaluator see the requested shape, and how often they agree.

Every crop shows an outer object, not the first one, which is in the center of every image. It is
inside the image, nothing is in front of it or behind it, and no other object of the image has its
color. So an evaluator's answer is the one shape in that color whose score is above one half; none
or several are "unclear".
"""

import argparse
import sys
from pathlib import Path

from common import leave
from eye_sheet import (
    ANSWER_SHEET,
    IMAGE_SIZE,
    KEY,
    REAL,
    check_positions,
    generated_crops,
    real_crops,
    refuse_full,
    write_sheet,
)
from eye_table import compare, markdown
from iclevr_diffusion.cli.ending import ends_with_a_line, user_settings
from iclevr_diffusion.data.evaluator_datamodule import HELD_OUT_SHARE
from iclevr_diffusion.data.labels import SHAPES
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.data.splits import split_by_sequence
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.weights_path import find_weights, weights_sum
from iclevr_diffusion.evaluation.classifier import load_evaluator, load_second_evaluator
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.utils.environment import choose_device
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text

TABLE = "table.md"


def sheet(options: argparse.Namespace) -> None:
    with user_settings():
        if options.crops < 1:
            raise UserError(f"--crops must be at least 1, got {options.crops}")
        names = options.weights or ["pretrained"]
        if REAL in names or len(set(names)) < len(names):
            raise UserError(f"--weights: each at most once, and not {REAL!r}: {', '.join(names)}")
        refuse_full(options.out)
        device = choose_device(options.device)
        models = {name: load_model(name).to(device) for name in names}
        for name, model in models.items():
            check_positions(name, model, options.layout)
        weights = {
            name: {
                "sha256": weights_sum(find_weights(Path(name))),
                "sampling": str(model.pipeline()),
            }
            for name, model in models.items()
        }
        source = choose_source(options.root, IMAGE_SIZE, options.cache, 1, 0)
        source.prepare_data()
    frames = source.load_frames()
    held_out = frames.take(split_by_sequence(frames.sequences, HELD_OUT_SHARE)[1])
    each = -(-options.crops // (len(SHAPES) * (1 + len(models))))
    crops = real_crops(held_out, each, options.seed)
    for name, model in models.items():
        crops += generated_crops(name, model, held_out, each, options.seed, options.layout)
    settings = {"seed": options.seed, "layout": options.layout, "weights": weights}
    for path in write_sheet(crops, settings, options.out):
        print(path)
    print(f"{len(crops)} crops; fill in {ANSWER_SHEET} before you open {KEY}, then run table")


def tabulate(options: argparse.Namespace) -> None:
    evaluators = [
        load_evaluator(None),
        load_second_evaluator(),
        *map(load_evaluator, options.evaluator),
    ]
    figures = compare(options.out, evaluators)
    text = markdown(figures)
    print(text)
    write_text(options.out / TABLE, text)
    leave(figures, options.json)


def main() -> int:
    program = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = program.add_subparsers(required=True)
    make = commands.add_parser("sheet", help="write pages of crops, the key and empty answers")
    make.set_defaults(run=sheet)
    make.add_argument("out", type=Path, help="a new folder, outside of the repository")
    make.add_argument("--root", required=True, help="the course's data")
    make.add_argument("--weights", action="append", help="may be repeated (pretrained)")
    make.add_argument("--crops", type=int, default=120, help="at least this many (120)")
    make.add_argument("--seed", type=int, default=0, help="(0)")
    make.add_argument("--layout", default=CLEAR, help="or data (clear)")
    make.add_argument("--device", default="auto")
    make.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    tabulated = commands.add_parser("table", help="tabulate the answers")
    tabulated.set_defaults(run=tabulate)
    tabulated.add_argument("out", type=Path, help="the sheet's folder")
    tabulated.add_argument("--json", type=Path, help="write the figures to this file")
    tabulated.add_argument(
        "--evaluator",
        action="append",
        default=[],
        help="a checkpoint to compare besides the packaged evaluators",
    )
    options = program.parse_args()
    with ends_with_a_line(debug=False):
        options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
