"""Accuracy over training time, frames and operations, from the kept checkpoints of a run.

    python -m iclevr_diffusion.train experiment=best callbacks.checkpoint.keep_every_n_epochs=2 …
    python benchmarks/time_to_accuracy.py outputs/best/… --root data/iclevr --seeds-of-all 1

The averaged network of each checkpoint samples the condition lists with the run's own sampler. The
time is that of training, validation and scoring in all processes of the run; the operations are
those of matrix products and convolutions.
"""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from common import leave, machine, parser, table
from iclevr_diffusion.cli.training_wiring import build_datamodule, build_module
from iclevr_diffusion.data.conditions import all_conditions
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import load_evaluator
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.evaluation.score import score_list
from iclevr_diffusion.utils.environment import choose_device
from iclevr_diffusion.utils.files import CONFIG

METRICS = ("accuracy", "exact_match", "extra")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--root", help="the course's data; else this project's own lists")
    arguments.add_argument("--seeds", type=int, default=3, help="of test and new_test (3)")
    arguments.add_argument(
        "--seeds-of-all", type=int, default=0, help="of all 2,324 label sets (0)"
    )
    arguments.add_argument(
        "--evaluator", help="a checkpoint.pth, instead of the packaged evaluator"
    )
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--plot", type=Path, help="an image file for the curve")
    options = arguments.parse_args()
    device = choose_device(options.device)
    evaluator = load_evaluator(options.evaluator).to(device)
    cfg = OmegaConf.load(options.run / CONFIG)
    assert isinstance(cfg, DictConfig)
    module = build_module(cfg, build_datamodule(cfg))
    lists = choose_source(options.root, 64, "outputs/cache", 1, 0).conditions()
    seeds = dict.fromkeys(lists, options.seeds)
    if options.seeds_of_all:
        lists["all"], seeds["all"] = all_conditions(), options.seeds_of_all
    rows = []
    for path in checkpoints(options.run):
        content = read_checkpoint(path)
        model = load_model(path).to(device)
        assert isinstance(model, Model)
        pipeline = model.pipeline(cfg.sampler.name, cfg.sampler.steps, cfg.guidance.scale)
        frames = content["progress"]["frames_seen"]
        row: dict[str, Any] = {
            "epoch": content["progress"]["epoch"] + 1,
            "minutes": round(content["callbacks"]["Limits"]["time_elapsed"]["train"] / 60, 1),
            "frames": frames,
            "pflop": round(
                module.flops_per_training_image(model.flops_forward()) * frames / 1e15, 4
            ),
        }
        for name, conditions in lists.items():
            score = score_list(pipeline, evaluator, conditions, seeds[name], by_step=False)
            metrics = score.result.metrics
            row[name] = {key: asdict(metrics[key]) for key in METRICS}
        rows.append(row)
        print(shown(row), flush=True)
    print(table([shown(row) for row in rows]))
    if options.plot:
        print(
            save_image(
                plot(rows, list(lists), f"{pipeline}, classified by {evaluator.name}"), options.plot
            )
        )
    about = {"sampler": str(pipeline), "evaluator": evaluator.name, "scored_on": machine(device)}
    leave({"run": cfg.name, "seed": cfg.seed, "rows": rows, **about}, options.json)
    return 0


def checkpoints(run: Path) -> list[Path]:
    """Return the kept checkpoints of a run in the order of their epochs."""
    found = {
        int(match[1]): path
        for path in (run / "checkpoints").glob("*.ckpt")
        if (match := re.fullmatch(r"epoch_(\d+)\.ckpt", path.name))
    }
    if not found:
        sys.exit(f"error: {run} kept none: train with callbacks.checkpoint.keep_every_n_epochs=1")
    return [found[epoch] for epoch in sorted(found)]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Format a row of the table: the mean accuracies."""
    return {
        key: f"{value['accuracy']['mean']:.4f}" if isinstance(value, dict) else value
        for key, value in row.items()
    }


def plot(rows: list[dict[str, Any]], lists: list[str], title: str) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in lists:
        values = [row[name]["accuracy"]["mean"] for row in rows]
        axes.plot([row["minutes"] for row in rows], values, marker=".", label=name)
    axes.set(xlabel="minutes of training", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
