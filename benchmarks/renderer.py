"""Compare synthetic with real frames: by classifiers trained on the other kind, and by distances.

    python benchmarks/renderer.py --root data/iclevr --real real.safetensors \\
        --synthetic synthetic.safetensors --json benchmarks/results/renderer.json

The two files are results of train_evaluator with train_on=real and with train_on=synthetic.
"""

from pathlib import Path
from typing import Any

import torch

from common import leave, machine, parser
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.splits import split_by_sequence
from iclevr_diffusion.data.synthetic.dataset import STEPS, synthetic_frames
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.evaluation.classifier import Evaluator, classify_frames, load_evaluator
from iclevr_diffusion.evaluation.distances import distances
from iclevr_diffusion.evaluation.evaluator_report import evaluate_classifier

SEED = 1000  # of frames that no evaluator was trained on


def halves(frames: Frames, size: int) -> tuple[Frames, Frames]:
    """Split frames into two sets of at most ``size`` frames, without common sequences."""
    one, two = split_by_sequence(frames.sequences, 0.5)
    return frames.take(one[:size]), frames.take(two[:size])


def compare(evaluator: Evaluator, one: Frames, two: Frames) -> dict[str, float]:
    return distances(*(classify_frames(evaluator, frames.images).features for frames in (one, two)))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--root", required=True, help="the course's data")
    options.add_argument(
        "--real", type=Path, required=True, help="an evaluator trained on real frames"
    )
    options.add_argument(
        "--synthetic", type=Path, required=True, help="an evaluator trained on synthetic ones"
    )
    options.add_argument("--frames", type=int, default=9000, help="of each kind (9000)")
    options.add_argument("--cache", type=Path, default=Path("outputs/cache"))
    arguments = options.parse_args()

    source = ICLEVR(arguments.root, 64, arguments.cache)
    source.prepare_data()
    real = source.load_frames()
    synthetic = synthetic_frames(arguments.frames // STEPS, SEED)
    # The packaged evaluator was trained on both kinds, so it may ignore their differences.
    evaluators = (load_evaluator(arguments.real), load_evaluator(None))
    real_halves = halves(real, arguments.frames // 2)
    synthetic_halves = halves(synthetic, arguments.frames // 2)
    figures: dict[str, Any] = {
        "trained_on_real_classifies_synthetic": evaluate_classifier(
            load_evaluator(arguments.real), synthetic
        ),
        "trained_on_synthetic_classifies_real": evaluate_classifier(
            load_evaluator(arguments.synthetic), real
        ),
        "frames_of_each": len(real_halves[0]),
        "distances": {
            evaluator.name: {
                "real to real": compare(evaluator, *real_halves),
                "synthetic to synthetic": compare(evaluator, *synthetic_halves),
                "real to synthetic": compare(evaluator, real_halves[0], synthetic_halves[0]),
            }
            for evaluator in evaluators
        },
        "machine": machine(torch.device("cpu")),
    }
    for name in ("trained_on_real_classifies_synthetic", "trained_on_synthetic_classifies_real"):
        values = figures[name]
        print(
            f"{name.replace('_', ' ')}: accuracy {values['accuracy']:.4f}, exact match"
            f" {values['exact_match']:.4f}, count accuracy {values['count_accuracy']:.4f}"
            f" ({values['frames']} frames)"
        )
        worst = sorted(values["by_label"].items(), key=lambda item: item[1])[:5]
        print("  worst:", ", ".join(f"{label} {value:.3f}" for label, value in worst))
    for evaluator_name, pairs in figures["distances"].items():
        print(f"in the features of {evaluator_name}, {figures['frames_of_each']} frames of each:")
        for name, values in pairs.items():
            print(f"  {name}: Fréchet {values['frechet']:.4f}, kernel {values['kernel']:.6f}")
    leave(figures, arguments.json)


if __name__ == "__main__":
    main()
