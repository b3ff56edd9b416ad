"""The files that the export command writes."""

import shutil
from pathlib import Path

import torch
from omegaconf import DictConfig
from PIL import Image

from iclevr_diffusion.cli.run_facts import run_facts
from iclevr_diffusion.cli.space_export import SPACE_FILES, export_space
from iclevr_diffusion.data.labels import LabelSet, Vocabulary
from iclevr_diffusion.diffusion.hub import SETTINGS, TENSORS
from iclevr_diffusion.diffusion.io import PARTS, save_into, stored_dtype
from iclevr_diffusion.diffusion.onnx_export import client
from iclevr_diffusion.diffusion.onnx_graph import save_onnx
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model, own_modules
from iclevr_diffusion.diffusion.weights_path import run_of, weights_name, weights_sum
from iclevr_diffusion.evaluation.evaluation_report import frames_text, markdown
from iclevr_diffusion.evaluation.image_grid import caption, grid, save_image
from iclevr_diffusion.evaluation.model_card import NOT_MEASURED, model_card, network_facts
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.utils.checks import check_choice
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.typed_json import read_dataclass, write_dataclass
from iclevr_diffusion.utils.weights import dtype_name

CARD, SAMPLES = "README.md", "samples.png"
GRAPH, CLIENT = "model.onnx", "model.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# What is written in each format, and what an upload deletes of an earlier one.
OUTPUTS = {
    "diffusers": (*PARTS, EVALUATION, CARD, SAMPLES),
    "onnx": (GRAPH, CLIENT),
    "space": SPACE_FILES,
}
REPLACED = {"diffusers": (*SETTINGS, *TENSORS, EVALUATION), "onnx": ()}
PROMPTS, IMAGES = 8, 2  # in the grid of samples
INTRODUCTION = """\
Generates {size}×{size} images of scenes from labels, such as "{example}".

![samples]({samples})

*Samples with seed 0 and the stored settings.*"""
CONVERTED = """\
These figures are of `{weights}`, stored in {measured_dtype}. The weights here were converted from
it and are stored in {dtype}; they were not measured themselves.

{tables}"""
COMMANDS = """\
{imports}from iclevr_diffusion import ICLEVRPipeline  # in the package iclevr-diffusion

pipe = ICLEVRPipeline.from_pretrained("{weights}")
pipe("{example}").images[0].save("image.png")"""


def check_export(cfg: DictConfig) -> None:
    """Check the settings that choose what is written.

    Raises:
        ValueError: A choice is unknown.
        UserError: A Space is to be uploaded.
    """
    check_choice("format", cfg.format, OUTPUTS)
    if cfg.dtype is not None:
        check_choice("dtype", cfg.dtype, DTYPES)
    if cfg.format == "space" and cfg.repo is not None:
        raise UserError(
            "repo uploads weights, not a Space; leave it out, and upload the folder with"
            " hf upload user/name FOLDER --repo-type space"
        )


def find_evaluation(given: str | None, weights: Path) -> Path | None:
    """Return the ``evaluation.json`` of weights.

    Args:
        given: The file or its folder. If None, look for one that ``evaluate`` wrote next to the
            weights and that is an evaluation of them.
        weights: As :func:`~iclevr_diffusion.diffusion.weights_path.find_weights` returns them.

    Raises:
        UserError: The given file is missing, or is an evaluation of other weights.
    """
    checksum = weights_sum(weights)
    if given is not None:
        path = Path(given).expanduser()
        path = path / EVALUATION if path.is_dir() else path
        if read_dataclass(Evaluation, path).weights_sha256 != checksum:
            raise UserError(f"evaluation={given}: this is an evaluation of other weights")
        return path
    run = run_of(weights)
    for path in (weights / EVALUATION, run / EVALUATION, run / "evaluation" / EVALUATION):
        if path.is_file() and read_dataclass(Evaluation, path).weights_sha256 == checksum:
            return path
    return None


def export(
    model: Model | GAN, weights: Path, evaluation: Path | None, cfg: DictConfig, out: Path
) -> list[str]:
    """Write what ``cfg.format`` asks for; return the files as paths relative to ``out``."""
    if cfg.format == "onnx":
        return export_graph(model, weights, cfg, out)
    if cfg.format == "space":
        return export_space(model, out, dtype_of(cfg, weights), cfg.license)
    return export_weights(model, weights, evaluation, cfg, out)


def export_weights(
    model: Model | GAN, weights: Path, evaluation: Path | None, cfg: DictConfig, out: Path
) -> list[str]:
    """Write a weights folder with a model card; return the files as paths relative to it.

    Nothing is written if the weights cannot be sampled.

    Raises:
        UserError: The network generates NaN.
    """
    dtype = dtype_of(cfg, weights)
    prompts = example_prompts(model.vocabulary)
    samples = sample_grid(model.pipeline(), prompts)
    facts = training_facts(model, weights, cfg.ema_length)
    files = save_into(model, out, dtype)
    save_image(samples, out / SAMPLES)
    example = ", ".join(prompts[1])
    measured = NOT_MEASURED
    if evaluation is not None:
        measured = markdown(read_dataclass(Evaluation, evaluation))
        if weights_sum(out) == weights_sum(weights):
            shutil.copyfile(evaluation, out / EVALUATION)
            files.append(EVALUATION)
        else:
            measured = CONVERTED.format(
                weights=weights_name(weights),
                measured_dtype=dtype_name(stored_dtype(weights)),
                dtype=dtype_name(dtype),
                tables=measured,
            )
    card = model_card(
        model,
        cfg.repo.split("/")[1] if cfg.repo else "iclevr-diffusion weights",
        INTRODUCTION.format(size=model.image_shape[1], example=example, samples=SAMPLES),
        COMMANDS.format(
            imports="".join(f"import {name}  # its classes\n" for name in own_modules(model)),
            weights=f"hf://{cfg.repo}" if cfg.repo else "this folder",
            example=example,
        ),
        facts,
        measured,
        cfg.license,
    )
    write_text(out / CARD, card)
    return [*files, SAMPLES, CARD]


def export_graph(model: Model | GAN, weights: Path, cfg: DictConfig, out: Path) -> list[str]:
    """Write ``model.onnx`` and ``model.json``; return their names."""
    assert isinstance(model, Model)
    save_onnx(model, out / GRAPH, half=dtype_of(cfg, weights) == torch.float16)
    write_dataclass(out / CLIENT, client(model))
    return [GRAPH, CLIENT]


def training_facts(
    model: Model | GAN, weights: Path, ema_length: float | None = None
) -> dict[str, str | None]:
    """Return the rows of the card's table."""
    facts: dict[str, str | None] = {"exported from": f"`{weights_name(weights)}`"}
    facts |= run_facts(weights)
    if ema_length is not None:
        facts["chosen by"] = f"ema_length={ema_length:g}, the average at the end of the training"
    return facts | {"data": frames_text(model.data)} | network_facts(model)


def dtype_of(cfg: DictConfig, weights: Path) -> torch.dtype:
    """Return the dtype to store: the one that is set, or that of the weights."""
    return stored_dtype(weights) if cfg.dtype is None else DTYPES[cfg.dtype]


def example_prompts(vocabulary: Vocabulary) -> list[LabelSet]:
    """Return label sets of one to three labels, the same for the same vocabulary."""
    names = vocabulary.names
    return [
        tuple(dict.fromkeys(names[(5 * k + 9 * j) % len(names)] for j in range(1 + k % 3)))
        for k in range(PROMPTS)
    ]


def sample_grid(pipeline: Pipeline, prompts: list[LabelSet]) -> Image.Image:
    """Generate images of each prompt, and arrange them with captions."""
    images = [pipeline.generate(prompt, IMAGES) for prompt in prompts]
    captions = [caption(prompt) for prompt in prompts for _ in range(IMAGES)]
    return grid(torch.cat(images), columns=PROMPTS, captions=captions)
