"""The report of an evaluation as Markdown tables."""

from collections.abc import Iterable, Mapping
from typing import Any

from iclevr_diffusion.evaluation.distances import DISTANCES
from iclevr_diffusion.evaluation.metric_collection import SECOND_EVALUATOR_METRICS
from iclevr_diffusion.evaluation.metrics import METRICS
from iclevr_diffusion.evaluation.results import Controlled, Evaluation, SettingResult
from iclevr_diffusion.utils.statistics import Statistics
from iclevr_diffusion.utils.text import one_line

FIDELITY_COLUMNS = {  # titles, and factors of the figures
    **{name: (distance.title, distance.scale) for name, distance in DISTANCES.items()},
    "auc": ("two-sample AUC", 1.0),
    "sharpness": ("sharpness ratio", 1.0),
    "grain": ("grain ratio", 1.0),
}
NONE = "-"


def markdown(evaluation: Evaluation) -> str:
    """Format an evaluation as tables, with the conditions of the measurement."""
    lines = [
        *_measured_with(evaluation),
        "",
        *_scores_table(evaluation),
        "",
        *_notes(evaluation),
        "",
        "Accuracy by number of objects, over all seeds:",
        "",
        *_counts_table(evaluation),
        *fidelity_lines(evaluation),
    ]
    return "\n".join(lines) + "\n"


def _measured_with(evaluation: Evaluation) -> list[str]:
    lists = "; ".join(f"{name}, {origin}" for name, origin in evaluation.lists.items())
    what = f"Weights: {evaluation.weights}, trained on {frames_text(evaluation.trained_on)}."
    if evaluation.images is not None:
        what = f"Images of {evaluation.images}, scored as they are."
    lines = [
        what,
        f"Evaluator: {evaluation.evaluator}. Machine: {evaluation.machine}.",
    ]
    if evaluation.second_evaluator:
        lines.append(
            f"Second evaluator: {evaluation.second_evaluator}. No checkpoint and no setting was"
            " chosen with it."
        )
    lines.append(f"Lists: {lists}.")
    return lines if evaluation.images is not None else [*lines, seeds_text(evaluation.seeds)]


def _scores_table(evaluation: Evaluation) -> list[str]:
    metrics = measured_metrics(evaluation)
    with_second = any(result.second_evaluator for _, _, result in evaluation.results())
    columns = ["list", *sampling_columns(evaluation), "conditions"]
    columns += [METRICS[name].heading() for name in metrics]
    if with_second:
        columns += [f"{METRICS[name].title}, second" for name in SECOND_EVALUATOR_METRICS]
    if evaluation.reference:
        columns += [distance.title for distance in DISTANCES.values()]
    rows = []
    for setting, name, result in evaluation.results():
        cells = [name, *sampling_cells(evaluation, setting, name), str(result.conditions)]
        cells += [
            _statistics_cell(result.metrics.get(metric), metric, metric == "accuracy")
            for metric in metrics
        ]
        if with_second:
            second = result.second_evaluator
            cells += [_statistics_cell(second.get(m), m) for m in SECOND_EVALUATOR_METRICS]
        if evaluation.reference:
            cells += _distance_cells(result.distances)
        rows.append(cells)
    return table(columns, rows)


def measured_metrics(evaluation: Evaluation) -> list[str]:
    """Return the names of the metrics that any list has, in the order of tables."""
    measured = {name for _, _, result in evaluation.results() for name in result.metrics}
    return [name for name in METRICS if name in measured]


def _counts_table(evaluation: Evaluation) -> list[str]:
    rows = [
        [
            name,
            *sampling_cells(evaluation, setting, name),
            ", ".join(f"{count}: {value:.3f}" for count, value in result.by_count.items()),
        ]
        for setting, name, result in evaluation.results()
    ]
    return table(["list", *sampling_columns(evaluation), "objects: accuracy"], rows)


def sampling_columns(evaluation: Evaluation) -> list[str]:
    """Return the headings of the columns that name a setting; none for given images."""
    if evaluation.images is not None:
        return []
    columns = [*setting_columns(evaluation), "calls"]
    return [*columns, "layout"] if _takes_positions(evaluation) else columns


def sampling_cells(evaluation: Evaluation, setting: SettingResult, name: str) -> list[str]:
    """Return the cells that name a setting, with the calls for the list of that name."""
    if evaluation.images is not None:
        return []
    cells = [*setting_cells(evaluation, setting), f"{setting.calls_for(name):.4g}"]
    return [*cells, setting.layout or NONE] if _takes_positions(evaluation) else cells


def setting_columns(evaluation: Evaluation) -> list[str]:
    """Return the headings of the columns that name a setting, whatever its layout."""
    columns = ["sampler", "guidance"]
    return [*columns, "EMA length"] if _has_lengths(evaluation) else columns


def setting_cells(evaluation: Evaluation, setting: SettingResult) -> list[str]:
    """Return the cells of :func:`setting_columns`."""
    sampler = f"{setting.sampler} {setting.steps} {setting.options.get('spacing', '')}".strip()
    cells = [sampler, guidance_text(setting)]
    length = f"{setting.options.get('ema_length', NONE)}"
    return [*cells, length] if _has_lengths(evaluation) else cells


def guidance_text(setting: SettingResult) -> str:
    """Name the scale of the guidance, and its mode if it is not joint."""
    return f"{setting.guidance_scale:g} {setting.options.get('guidance_mode', '')}".strip()


def _has_lengths(evaluation: Evaluation) -> bool:
    return any("ema_length" in setting.options for setting in evaluation.settings)


def _takes_positions(evaluation: Evaluation) -> bool:
    return any(setting.layout for setting in evaluation.settings)


def _statistics_cell(values: Statistics | None, name: str, with_interval: bool = False) -> str:
    if values is None:
        return NONE
    form = METRICS[name].format
    text = f"{values.mean:{form}}"
    if values.std is not None:
        text += f" ± {values.std:{form}}"
    if with_interval and values.interval is not None:
        low, high = values.interval
        text += f" [{low:{form}}, {high:{form}}]"
    return text


def _distance_cells(distances: Mapping[str, float]) -> list[str]:
    return [
        f"{distance.scale * distances[name]:.3g}" if name in distances else NONE
        for name, distance in DISTANCES.items()
    ]


def _notes(evaluation: Evaluation) -> list[str]:
    notes = [
        "Accuracy: for an image with k labels, the k labels with the highest scores are the"
        " predictions; the share of correct ones is pooled over all images. For exact match,"
        " missing and extra objects, an image shows the labels whose scores are above one half; a"
        " second object of one label does not change them. An object of unclear shape has no label,"
        " and an image that shows one is not an exact match. Count accuracy is the share of the"
        " images with the requested number of objects, among those with fewer labels than the"
        " evaluator can count."
    ]
    if evaluation.reference:
        notes.append(
            "Fréchet and kernel distance are between the images of all seeds and"
            f" {evaluation.reference['frames']} frames ({frames_text(evaluation.reference)}), in"
            " this evaluator's features. Use them to compare weights on the same list, not one list"
            " with another: they depend on the labels and the number of images."
        )
    if any("guidance_mode" in setting.options for setting in evaluation.settings):
        notes.append(
            "With composed guidance, the network sees one label at a time, with one call each."
            " The calls in the table are the mean over the list."
        )
    if _takes_positions(evaluation):
        notes.append(
            "Layout: the positions of the objects are sampled before each image. With `clear`,"
            " objects are kept apart; with `data`, positions are distributed as in the training"
            " data."
        )
    return notes


def fidelity_lines(evaluation: Evaluation) -> list[str]:
    """Format the fidelity of all settings, with controls; [] if it was not measured."""
    rows = []
    for setting in evaluation.settings:
        if (fidelity := setting.fidelity) is None:
            continue
        named = setting_cells(evaluation, setting)
        rows.append([*named, f"{fidelity.num_frames} images", *_fidelity_cells(fidelity.images)])
        if fidelity.crops is not None:
            crops = f"{fidelity.num_crops} crops"
            rows.append([*named, crops, *_fidelity_cells(fidelity.crops)])
    if not rows:
        return []
    columns = [title for title, _ in FIDELITY_COLUMNS.values()]
    return [
        "",
        "Fidelity: one image is generated for the labels of each held-out frame, with the layout"
        " `data` if the network takes positions, and the images are compared with those frames. In"
        " brackets is the control, the same figure between two halves of the frames. The AUC says"
        " how well a newly trained network tells the two sets apart: .5 if it cannot. Ratios are"
        " generated to real.",
        "",
        *table([*setting_columns(evaluation), "compared", *columns], rows),
    ]


def _fidelity_cells(figures: Mapping[str, Controlled]) -> list[str]:
    return [
        f"{scale * figures[name].value:.3g} ({scale * figures[name].control:.3g})"
        if name in figures
        else NONE
        for name, (_, scale) in FIDELITY_COLUMNS.items()
    ]


def seeds_text(seeds: int, with_interval: bool = True) -> str:
    """Say what statistics over so many seeds mean."""
    if seeds == 1:
        return "One seed: there is no standard deviation."
    text = f"{seeds} seeds: mean ± standard deviation over the seeds"
    if not with_interval:
        return f"{text}."
    return (
        f"{text}, and in brackets the 95 % confidence interval of the mean by Student's t. It"
        " covers the variation from sampling noise, not from other conditions or weights."
    )


def frames_text(data: Mapping[str, Any]) -> str:
    """Describe frames in words: ``synthetic frames, sequences 4, seed 0``."""
    if not data:
        return "unknown frames"
    details = [f"{key} {value}" for key, value in data.items() if key not in ("source", "frames")]
    return one_line(", ".join([f"{data.get('source', 'unknown')} frames", *details]))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Format a table as lines of Markdown."""
    lines = [list(columns), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(cells)} |" for cells in lines]
