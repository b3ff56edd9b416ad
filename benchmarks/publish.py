"""Publish the weights of a run with the package, with a model card.

    python benchmarks/publish.py outputs/best/…
    python -m iclevr_diffusion.evaluate data.root=data/iclevr out=evaluation …
    python benchmarks/publish.py outputs/best/… evaluation

The weights are converted to float16 and replace those in the package. The first command publishes
them, so that the published weights are evaluated; the second adds the figures to the card and makes
the first sampler setting of the evaluation the default of the weights.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import torch

from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.run_summary import Summary
from iclevr_diffusion.diffusion.trained import SAMPLING_KEYS, Model
from iclevr_diffusion.diffusion.weights_path import PRETRAINED_FOLDER, weights_sum
from iclevr_diffusion.evaluation.evaluation_report import markdown
from iclevr_diffusion.evaluation.model_card import NOT_MEASURED, model_card, network_facts
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.models.experts import NoiseExperts
from iclevr_diffusion.utils.files import SUMMARY, write_text
from iclevr_diffusion.utils.status import read_status
from iclevr_diffusion.utils.typed_json import read_dataclass

INTRODUCTION = """\
Generates 64×64 images of i-CLEVR scenes from labels: one to three of the 24 objects (8 colors × 3
shapes), or more. The weights were trained on scenes of one to three objects; the list `crowded`
measures scenes of four and five. Storage is float16; the network computes in float32."""
COMMANDS = """\
python -m iclevr_diffusion.sample labels='red cube, blue sphere, yellow cylinder'
python -m iclevr_diffusion.evaluate data.root=data/iclevr"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("evaluation", type=Path, nargs="?", help="the output folder of evaluate")
    parser.add_argument(
        "--coarse-summary", type=Path, help="the summary.json of the run at net.coarse_weights"
    )
    parser.add_argument("--switch", type=float, help="net.switch, if not that of the training")
    parser.add_argument("--last", metavar="WHY", help="publish the last checkpoint, and why")
    options = parser.parse_args()
    summary = read_dataclass(Summary, options.run / SUMMARY)
    model = load_model(options.run / "weights")
    assert isinstance(model, Model)
    if options.last:
        last = load_model(options.run / "checkpoints" / "last.ckpt")
        assert isinstance(last, Model)
        model = dataclasses.replace(last, data=model.data, split=model.split)
        chosen_by = f"{options.last}: the last checkpoint"
        weights = dataclasses.replace(summary.weights, chosen_by=chosen_by)
        summary = dataclasses.replace(summary, weights=weights)
    if options.switch is not None:
        assert isinstance(model.net, NoiseExperts)
        model.net.switch = options.switch
        model.net.register_to_config(switch=options.switch)
    measured = NOT_MEASURED
    if options.evaluation is not None:
        evaluation = read_dataclass(Evaluation, options.evaluation / EVALUATION)
        setting = evaluation.settings[0]
        sampling = dataclasses.asdict(setting) | setting.options
        label_drop = {key: v for key, v in model.sampling.items() if key == "label_drop"}
        sampled_with = {
            key: sampling[key] for key in SAMPLING_KEYS if sampling.get(key) is not None
        }
        model = dataclasses.replace(model, sampling=label_drop | sampled_with)
        measured = markdown(evaluation).strip()
        with tempfile.TemporaryDirectory() as folder:
            rounded = save_model(model, Path(folder, "weights"), torch.float16)
            if weights_sum(rounded) != evaluation.weights_sha256:
                sys.exit(
                    f"error: {options.evaluation} is not an evaluation of the weights of"
                    f" {options.run} in float16"
                )
    save_model(model, PRETRAINED_FOLDER, torch.float16)
    words = read_status(options.run)["overrides"]
    command = " ".join(word for word in words if not word.startswith("resume="))
    coarse = None
    if options.coarse_summary is not None:
        coarse = read_dataclass(Summary, options.coarse_summary)
    write_text(PRETRAINED_FOLDER / "README.md", card(model, command, summary, coarse, measured))
    for path in sorted(PRETRAINED_FOLDER.rglob("*")):
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB" if path.is_file() else path)
    return 0


def card(
    model: Model,
    command: str,
    summary: Summary,
    coarse: Summary | None,
    measured: str,
) -> str:
    """Format the model card.

    Args:
        summary: of the run.
        coarse: of the run that trained the coarse network, if there are two networks.
        measured: the tables of an evaluation.
    """
    minutes = (summary.seconds_this_process or 0) / 60
    facts = {
        "made by": f"`python -m iclevr_diffusion.train {command}`, seed {summary.seed}",
        **network_facts(model),
        "data": f"{summary.data} frames, {summary.images_seen:,} seen",
        "time": f"{(summary.seconds or 0) / 60:.0f} minutes in all; the last {minutes:.0f} of them"
        f" on {summary.machine.device}",
        "coarse network": None if coarse is None else trained_before(coarse),
        "chosen by": summary.weights.chosen_by,
    }
    title = "iclevr-diffusion, pretrained"
    return model_card(model, title, INTRODUCTION, COMMANDS, facts, measured)


def trained_before(summary: Summary) -> str:
    return (
        f"trained before, by `experiment={summary.name}`, seed {summary.seed}:"
        f" {summary.images_seen:,} frames, {(summary.seconds or 0) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    sys.exit(main())
