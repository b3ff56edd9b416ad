"""Draw condition lists with weights, score the images, and compare them with real ones."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from iclevr_diffusion.cli.command import refuse_several, user_settings
from iclevr_diffusion.cli.instantiate import instantiate, sampling_settings
from iclevr_diffusion.cli.output_dir import output_folder
from iclevr_diffusion.data import conditions as condition_lists
from iclevr_diffusion.data.conditions import CHOOSE_BY, TEST_LISTS
from iclevr_diffusion.data.labels import LabelSet
from iclevr_diffusion.data.source import as_source
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.data.types import Frames, Source
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.diffusion.weights_path import (
    PRETRAINED,
    PRETRAINED_FOLDER,
    find_weights,
    weights_sum,
)
from iclevr_diffusion.evaluation.classifier import Evaluator, load_second_evaluator
from iclevr_diffusion.evaluation.distances import features_of
from iclevr_diffusion.evaluation.evaluation_images import save_accuracy_plot, save_images
from iclevr_diffusion.evaluation.evaluation_report import frames_text, markdown
from iclevr_diffusion.evaluation.fidelity import (
    MIN_SEQUENCES,
    held_out_frames,
    held_out_sequences,
    pipeline_fidelity,
)
from iclevr_diffusion.evaluation.image_grid import Strip
from iclevr_diffusion.evaluation.results import EVALUATION, Evaluation
from iclevr_diffusion.evaluation.score import ListScore, score_list, setting_result
from iclevr_diffusion.utils.environment import choose_device, device_name, versions
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import write_text
from iclevr_diffusion.utils.progress_bar import Progress, progress
from iclevr_diffusion.utils.rng import keyed_generator
from iclevr_diffusion.utils.typed_json import write_dataclass

MAX_COUNT = 1_000_000  # of draws, of images at once, of frames to compare with


def run(cfg: DictConfig) -> None:
    with user_settings():
        refuse_several()
        for name, least in (("seeds", 1), ("batch_size", 1), ("reference_frames", 0)):
            if not least <= cfg[name] <= MAX_COUNT:
                raise UserError(f"{name} must be in {least}..{MAX_COUNT}, got {cfg[name]}")
        if cfg.out is not None and is_taken(Path(cfg.out)):
            raise UserError(f"out={cfg.out} is there already; name a new folder")
        weights = find_weights(Path(cfg.weights))  # of a folder of runs the newest: that is named
        model = load_model(weights)
        settings = requested_pipelines(cfg, model)
        evaluator = instantiate(cfg.evaluator, "evaluator")
        second = load_second_evaluator()
        source = data_source(cfg, model)
        if source is not None:
            source.check()
        with_fidelity = wants_fidelity(cfg.fidelity, source)
        device = choose_device(cfg.device)
    model, evaluator, second = model.to(device), evaluator.to(device), second.to(device)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/evaluate") as out:
        lists, origins = find_lists(cfg.lists, source, model.data)
        reference = reference_features(cfg.reference_frames, source, evaluator)
        evaluation = describe(cfg, weights, model, (evaluator, second), origins, source, reference)
        held_out = held_out_frames(source) if with_fidelity and source is not None else None
        measure(cfg, (evaluator, second), settings, lists, reference, evaluation, out, held_out)


def measure(
    cfg: DictConfig,
    evaluators: tuple[Evaluator, Evaluator],
    settings: Sequence[Pipeline],
    lists: Mapping[str, Sequence[LabelSet]],
    reference: Tensor | None,
    evaluation: Evaluation,
    out: Path,
    held_out: Frames | None,
) -> None:
    """Draw and score with every setting; what comes out goes into ``evaluation`` and ``out``.

    Args:
        evaluators: the one that the figures are of, and the one beside it.
        held_out: frames to compare with; None for no fidelity figures.
    """
    images, evaluator = [], evaluators[0]
    each = cfg.seeds * sum(map(len, lists.values())) + (0 if held_out is None else len(held_out))
    total = len(settings) * each
    with progress(total, "image") as bar:
        for setting in settings:
            bar.set_description(str(setting))
            strip = Strip(setting.steps)
            scores = score_lists(cfg, setting, evaluators, lists, reference, strip, bar)
            fidelity = None
            if held_out is not None:
                fidelity = pipeline_fidelity(
                    setting, evaluator, held_out, cfg.batch_size, bar.update
                )
            evaluation.settings.append(setting_result(setting, scores, fidelity))
            folder = out if len(settings) == 1 else out / setting.folder
            heading = [f"{evaluation.weights}, {setting}", f"classified by {evaluator.name}"]
            images += save_images(folder, heading, scores, strip)
            # After each setting, so that a long evaluation that is stopped leaves what it has.
            write_dataclass(out / EVALUATION, evaluation)
            write_text(out / "evaluation.md", markdown(evaluation))
    if len(settings) > 1:
        images.append(save_accuracy_plot(evaluation, out))
    print(markdown(evaluation))
    for path in [out / EVALUATION, out / "evaluation.md", *images]:
        print(f"  {os.path.relpath(path)}")


def describe(
    cfg: DictConfig,
    weights: Path,
    model: Model | GAN,
    evaluators: tuple[Evaluator, Evaluator],
    origins: Mapping[str, str],
    source: Source | None,
    reference: Tensor | None,
) -> Evaluation:
    """Start the results of an evaluation, without any yet."""
    known = source.description() if source is not None else {}
    return Evaluation(
        weights=PRETRAINED if weights == PRETRAINED_FOLDER else str(weights),
        weights_sha256=weights_sum(weights),
        trained_on=model.data,
        evaluator=evaluators[0].name,
        second_evaluator=evaluators[1].name,
        lists=dict(origins),
        seeds=cfg.seeds,
        reference=None if reference is None else {**known, "frames": len(reference)},
        machine=device_name(model.device),
        versions=versions(),
        settings=[],
    )


def score_lists(
    cfg: DictConfig,
    pipeline: Pipeline,
    evaluators: tuple[Evaluator, Evaluator],
    lists: Mapping[str, Sequence[LabelSet]],
    reference: Tensor | None,
    strip: Strip,
    bar: Progress,
) -> dict[str, ListScore]:
    """Draw and score every list; the strip watches the first."""
    first = next(iter(lists))
    return {
        name: score_list(
            pipeline,
            evaluators[0],
            label_sets,
            cfg.seeds,
            reference,
            cfg.batch_size,
            strip if name == first else None,
            bar.update,
            second=evaluators[1],
        )
        for name, label_sets in lists.items()
    }


def requested_pipelines(cfg: DictConfig, model: Model | GAN) -> list[Pipeline]:
    """Every combination of the samplers, steps and guidance scales that were asked for.

    Raises:
        ValueError: one of them is out of range, or there is no such layout for these weights.
    """
    result: list[Pipeline] = []
    for name, steps, scale in itertools.product(
        several(cfg.sampler.name), several(cfg.sampler.steps), several(cfg.guidance.scale)
    ):
        how = sampling_settings(cfg.sampler, cfg.guidance)
        how |= {"name": name, "steps": steps, "guidance_scale": scale, "layout": cfg.layout}
        result.append(model.pipeline(**how))
    if not result:
        raise UserError("sampler.name, sampler.steps and guidance.scale need a value each")
    if len({setting.folder for setting in result}) < len(result):
        raise UserError("sampler.name, sampler.steps or guidance.scale names one value twice")
    return result


def is_taken(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig) else [value]


def data_source(cfg: DictConfig, model: Model | GAN) -> Source | None:
    """The frames to compare with: those the user names, else those that the weights know of."""
    data = cfg.data
    if data.get("root") is not None or data.get("source") != "auto":
        if "image_size" in data:
            data.image_size = model.image_shape[1]  # so that the frames compare
        return as_source(instantiate(data, "data", cache=cfg.paths.cache))
    known = model.data
    if known.get("source") == "synthetic" and {"sequences", "seed"} <= known.keys():
        return Synthetic(known["sequences"], known["seed"], model.image_shape[1], cfg.paths.cache)
    return None


def wants_fidelity(setting: bool | str, source: Source | None) -> bool:
    """Whether images are to be compared with held-out frames.

    Raises:
        UserError: the setting is unknown, or asks for a comparison that the data do not allow.
    """
    if setting not in ("auto", True, False):
        raise UserError(f"fidelity must be auto, true or false, got {setting!r:.60}")
    if setting is False or (source is None and setting == "auto"):
        return False
    if source is None:
        raise UserError("fidelity=true needs frames to compare with: data.root=…")
    count = held_out_sequences(source)
    if setting == "auto":
        return source.description()["source"] == "iclevr" and count >= MIN_SEQUENCES
    if count < MIN_SEQUENCES:
        raise UserError(
            f"fidelity=true needs {MIN_SEQUENCES} held-out sequences, a tenth of the data's;"
            f" these have {count}: give more data, or fidelity=false"
        )
    return True


def find_lists(
    names: Any, source: Source | None, trained_on: Mapping[str, Any]
) -> tuple[dict[str, list[LabelSet]], dict[str, str]]:
    """The condition lists by name, and where each is from.

    Raises:
        UserError: one is unknown or empty, or two have one name.
    """
    if not several(names):
        raise UserError("lists is empty; write for example 'lists=[test,new_test]'")
    lists: dict[str, list[LabelSet]] = {}
    origins: dict[str, str] = {}
    # The unseen ones last: to find them, all frames have to be read.
    for name in sorted(several(names), key=lambda name: name == "unseen"):
        short, label_sets, origin = find_list(name, source, trained_on)
        if not label_sets:
            raise UserError(f"lists: {name} is empty: there is nothing to draw")
        if short in lists:
            raise UserError(f"lists: {short} is named twice")
        lists[short], origins[short] = label_sets, origin
    return lists, origins


def find_list(
    name: str, source: Source | None, trained_on: Mapping[str, Any]
) -> tuple[str, list[LabelSet], str]:
    """One list: its name, its label sets, and where they are from."""
    known = {} if source is None else source.description()
    if name in TEST_LISTS and known.get("source") == "iclevr" and source is not None:
        return name, source.conditions()[name], "the course's"
    if name in (*TEST_LISTS, CHOOSE_BY):
        return name, condition_lists.packaged_conditions(name), "this project's own"
    if name == "all":
        return name, condition_lists.all_conditions(), "every single, pair and triple"
    if name == "crowded":
        return name, condition_lists.crowded_conditions(), "this project's own"
    if name == "unseen":
        return (
            name,
            unseen(source, trained_on),
            f"triples that {frames_text(known)} do not show",
        )
    if not Path(name).is_file():
        raise UserError(
            f"lists: {name} is neither a file nor one of test, new_test, validation, all, unseen,"
            " crowded"
        )
    return Path(name).stem, condition_lists.read_conditions(name), f"the file {name}"


def unseen(source: Source | None, trained_on: Mapping[str, Any]) -> list[LabelSet]:
    """The triples that the frames of the training do not show.

    Raises:
        UserError: the source is not what the weights were trained on.
    """
    if source is None:
        raise UserError("lists: unseen needs the frames of the training: data.root=…")
    if trained_on and source.description() != trained_on:
        raise UserError(
            f"lists: unseen needs the frames of the training, {frames_text(trained_on)},"
            f" not {frames_text(source.description())}"
        )
    return condition_lists.unseen_conditions(source.frames().labels)


def reference_features(count: int, source: Source | None, evaluator: Evaluator) -> Tensor | None:
    """The evaluator's features of ``count`` frames, chosen at random; None where there are none."""
    if source is None or count == 0:
        return None
    images = source.frames().images
    order = torch.randperm(len(images), generator=keyed_generator("reference"))
    return features_of(evaluator, images[order[:count].sort().values])
