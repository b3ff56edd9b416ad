"""Seconds, network calls and accuracy of sampling: 1000 steps of DDPM against few steps.

    python benchmarks/sampling.py --root data/iclevr
    python benchmarks/sampling.py --weights outputs/cosine_eps --settings own ddpm:1000:1
    python benchmarks/sampling.py --settings own dpm_solver:10:3 ddpm:1000:3 --plot calls.png
    python benchmarks/sampling.py --root data/iclevr --fidelity 600 --settings own \\
        dpm_solver:8:1.5:spacing=karras,min_noise=.02

The same weights sample the same condition lists with each setting,
SAMPLER:STEPS:GUIDANCE[:NAME=VALUE,…], where the names are those of ``Model.pipeline`` and the
spacing is trailing unless it is given; "own" is the default setting of the weights. Both evaluators
classify the images; with --fidelity, that many held-out frames are compared with images for their
labels. The time is for 32 images, the shortest of three repetitions; of more than 50 steps only the
first 50 are timed and the total is extrapolated. The last row is the time of the lab reports'
network (experiment=cosine_eps, untrained, so without accuracy) with 1000 steps of DDPM,
extrapolated from two.
"""

import contextlib
import itertools
import math
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from common import experiment_config, leave, machine, parser, table
from iclevr_diffusion.cli.training_wiring import build_datamodule, build_module
from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.source import choose_source
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.samplers import Sampler, Step
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import load_evaluator, load_second_evaluator
from iclevr_diffusion.evaluation.fidelity import held_out_frames, pipeline_fidelity
from iclevr_diffusion.evaluation.image_grid import save_image
from iclevr_diffusion.evaluation.plots import accuracy_plot
from iclevr_diffusion.evaluation.score import score_list
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.utils.environment import choose_device
from iclevr_diffusion.utils.rng import image_generators

IMAGES = 32
TIMED_STEPS = 50
KINDS = ("", ", exact match", ", exact match, second")  # of a list's metrics


class Enough(Exception):
    """The timed steps are done."""


def benchmark_labels() -> torch.Tensor:
    """Return the labels of the timed images, (IMAGES, L): three of one color each."""
    labels = torch.zeros(IMAGES, NUM_LABELS)
    labels[:, ::8] = 1
    return labels


def seconds(pipeline: DenoisingPipeline, device: torch.device, most: int = TIMED_STEPS) -> float:
    """Return the seconds for ``IMAGES`` images, extrapolated from the first ``most`` steps."""
    labels = benchmark_labels()
    times: list[float] = []
    timed = min(most, pipeline.steps)

    def watch(step: Step) -> None:
        if step.number + 1 == timed:
            step.x_t.sum().item()  # wait for the device
            times.append(time.perf_counter() - start)
            raise Enough

    for _ in range(3):
        generators = image_generators(0, range(IMAGES), "benchmark")
        start = time.perf_counter()
        with contextlib.suppress(Enough):
            pipeline(labels.to(device), generators, watch, IMAGES)
    return min(times) * pipeline.steps / timed


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--weights", default="pretrained")
    arguments.add_argument("--root", help="the course's data; else this project's own lists")
    arguments.add_argument("--seeds", type=int, default=10, help="per list (10)")
    arguments.add_argument("--slow-seeds", type=int, help="with more than 50 steps (as --seeds)")
    arguments.add_argument(
        "--evaluator", help="a checkpoint.pth, instead of the packaged evaluator"
    )
    arguments.add_argument("--settings", nargs="+", default=["own", "ddpm:1000:own"])
    arguments.add_argument("--no-lab", action="store_true", help="leave out the last row")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--bf16", action="store_true", help="sample in bfloat16 autocast")
    arguments.add_argument("--fidelity", type=int, default=0, help="held-out frames (0: none)")
    arguments.add_argument("--plot", type=Path, help="an image file: accuracy over calls")
    options = arguments.parse_args()
    device = choose_device(options.device)
    here = machine(device)
    model = load_model(options.weights).to(device)
    assert isinstance(model, Model)
    evaluator = load_evaluator(options.evaluator).to(device)
    second = load_second_evaluator().to(device)
    source = choose_source(options.root, 64, "outputs/cache", 1, 0)
    lists = source.conditions()
    held_out = None
    if options.fidelity:
        source.prepare_data()
        frames = held_out_frames(source)
        held_out = frames.take(torch.arange(min(options.fidelity, len(frames))))
    rows: list[dict[str, Any]] = []
    precision = "bf16-mixed" if options.bf16 else "32-true"
    figures = {"rows": rows, "precision": precision, "machine": here}
    figures |= {"evaluator": evaluator.name, "second_evaluator": second.name}
    if options.bf16:
        in_bf16 = torch.autocast(device.type, torch.bfloat16)
        model.net.forward = in_bf16(model.net.forward)
    for setting in options.settings:
        pipeline = make_pipeline(model, setting)
        seeds = options.seeds
        if pipeline.steps > TIMED_STEPS and options.slow_seeds is not None:
            seeds = options.slow_seeds
        row: dict[str, Any] = {
            "network": options.weights,
            "sampler": str(pipeline),
            "network_calls": pipeline.network_calls(benchmark_labels()),
            "seconds": round(seconds(pipeline, device), 2),
            "seeds": seeds,
        }
        for name, conditions in lists.items() if seeds else ():
            scored = score_list(
                pipeline,
                evaluator,
                conditions,
                seeds,
                batch_size=IMAGES,
                by_step=False,
                second=second,
            )
            result = scored.result
            row[name] = asdict(result.metrics["accuracy"])
            row[f"{name}, exact match"] = asdict(result.metrics["exact_match"])
            row[f"{name}, exact match, second"] = asdict(result.second_evaluator["exact_match"])
        if held_out is not None and seeds:
            fidelity = pipeline_fidelity(pipeline, evaluator, held_out, IMAGES)
            row["auc"] = asdict(fidelity.images["auc"])
        rows.append(row)
        print(row, flush=True)
        leave(figures, options.json)  # after each, because the last ones take long
    if not options.no_lab:
        rows.append(lab_row(device))
    print(table([shown(row, lists) for row in rows]))
    if options.plot:
        title = f"{options.weights}\nclassified by {evaluator.name}"
        plot = accuracy_plot(curves(rows, lists), title, "network calls per image", "log")
        print(save_image(plot, options.plot))
    leave(figures, options.json)
    return 0


def make_pipeline(model: Model, setting: str) -> DenoisingPipeline:
    """Make a pipeline from SAMPLER:STEPS:GUIDANCE[:NAME=VALUE,…]."""
    if setting == "own":
        return model.pipeline()
    name, steps, scale, *more = setting.split(":")
    of_author = ("guidance_min_noise", "guidance_max_noise", "guidance_rescale")
    kept = {key: value for key, value in model.sampling.items() if key not in of_author}
    model = replace(model, sampling=kept)
    given: dict[str, Any] = {"spacing": "trailing"}
    for pair in more[0].split(",") if more else ():
        key, value = pair.split("=")
        given[key] = value if key == "spacing" else yaml.safe_load(value)
    return model.pipeline(name, int(steps), None if scale == "own" else float(scale), **given)


def shown(row: dict[str, Any], lists: Iterable[str]) -> dict[str, Any]:
    """Format a row of the table: mean ± standard deviation over the seeds; AUC with control."""
    measured = [f"{name}{kind}" for name in lists for kind in KINDS]
    result = {key: value for key, value in row.items() if key not in (*measured, "auc")}
    for name in measured:
        of = row.get(name, {"mean": None, "std": None})
        texts = [f"{of[key]:.4f}" for key in ("mean", "std") if of[key] is not None]
        result[name] = " ± ".join(texts) or "–"
    auc = row.get("auc")
    return result | {"AUC": f"{auc['value']:.3f} ({auc['control']:.3f})" if auc else "–"}


def curves(
    rows: Iterable[dict[str, Any]], lists: Iterable[str]
) -> dict[str, list[tuple[int, float, float, float]]]:
    """Return points (calls, mean, low, high) for each list and setting, over its steps."""
    result: dict[str, list[tuple[int, float, float, float]]] = {}
    for row, name in itertools.product(rows, lists):
        if name in row:
            line = re.sub(r" \d+ steps", "", f"{name}, {row['sampler']}")
            low, high = row[name]["interval"] or (math.nan, math.nan)
            result.setdefault(line, []).append((row["network_calls"], row[name]["mean"], low, high))
    return result


def lab_row(device: torch.device) -> dict[str, Any]:
    cfg = experiment_config("cosine_eps", [])
    module = build_module(cfg, build_datamodule(cfg)).to(device).eval()
    assert isinstance(module, DiffusionModule)
    pipeline = module.pipeline(module.net, Sampler("ddpm", 1000))
    return {
        "network": "cosine_eps, untrained",
        "sampler": str(pipeline),
        "network_calls": pipeline.network_calls(benchmark_labels()),
        "seconds": round(seconds(pipeline, device, 2 if device.type == "cpu" else TIMED_STEPS), 2),
        "seeds": 0,
    }


if __name__ == "__main__":
    sys.exit(main())
