"""The answers of a sheet and of the evaluators, and how often they agree; for ``eye.py``."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import table
from eye_sheet import ANSWER_SHEET, KEY, SHORT, color_of, image_path, shape_of
from iclevr_diffusion.data.labels import ICLEVR_LABELS, SHAPES
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.evaluation.classifier import Evaluator, classify
from iclevr_diffusion.evaluation.classifier_output import THRESHOLD
from iclevr_diffusion.utils.errors import UserError

UNCLEAR = "unclear"
ANSWERS = (*SHAPES, UNCLEAR)


def parse_answers(text: str, count: int) -> dict[int, str]:
    """Parse the answers by number, 1 … count.

    Raises:
        UserError: an answer is missing, given twice, or not one of the four.
    """
    answers: dict[int, str] = {}
    for at, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words or words[1:] == ["?"]:
            continue
        if len(words) != 2 or not re.fullmatch("[0-9]{1,6}", words[0]):
            raise UserError(
                f"{ANSWER_SHEET}, line {at}: expected a number and an answer: {line!r:.60}"
            )
        number, word = int(words[0]), words[1].lower()
        answer = SHORT.get(word, word)
        if answer not in ANSWERS:
            raise UserError(
                f"{ANSWER_SHEET}, line {at}: {words[1]!r:.60} is not one of {', '.join(ANSWERS)}"
                f" ({', '.join(SHORT)})"
            )
        if not 1 <= number <= count or number in answers:
            what = "is answered twice" if number in answers else f"is not in 1..{count}"
            raise UserError(f"{ANSWER_SHEET}, line {at}: number {number} {what}")
        answers[number] = answer
    missing = [str(number) for number in range(1, count + 1) if number not in answers]
    if missing:
        more = ", …" if len(missing) > 8 else ""
        raise UserError(
            f"{ANSWER_SHEET}: {len(missing)} of {count} are not answered:"
            f" {', '.join(missing[:8])}{more}"
        )
    return answers


def evaluator_answers(evaluator: Evaluator, images: Tensor, labels: Sequence[str]) -> list[str]:
    """Return the shape that the evaluator sees in the color of each label.

    Args:
        images: uint8, (N, 3, H, W), the whole images.
        labels: N labels, each with a color of its own in its image.
    """
    scores = classify(evaluator, to_unit_range(images).to(evaluator.device)).scores.cpu()
    answers = []
    for row, label in zip(scores, labels, strict=True):
        seen = [
            shape
            for shape in SHAPES
            if row[ICLEVR_LABELS.index[f"{color_of(label)} {shape}"]] > THRESHOLD
        ]
        answers.append(seen[0] if len(seen) == 1 else UNCLEAR)
    return answers


def summary(records: Sequence[dict[str, Any]], evaluators: Sequence[str]) -> dict[str, Any]:
    """Summarize the answers per group and shape.

    Args:
        records: one per crop: ``group``, ``asked``, ``eye``, and the answer of each evaluator.
        evaluators: their names.

    Returns:
        ``result[group][shape]``, including the shape ``all``: the number of ``crops``, and for the
        eye and each evaluator the shares ``right`` (the requested shape), ``unclear`` and
        ``agrees`` (the eye's answer).
    """
    result: dict[str, Any] = {}
    for group in dict.fromkeys(record["group"] for record in records):
        result[group] = {}
        for shape in (*SHAPES, "all"):
            rows = [r for r in records if r["group"] == group and shape in (r["asked"], "all")]
            result[group][shape] = {"crops": len(rows)} | {
                who: {
                    "right": share(r[who] == r["asked"] for r in rows),
                    "unclear": share(r[who] == UNCLEAR for r in rows),
                    "agrees": share(r[who] == r["eye"] for r in rows),
                }
                for who in ("eye", *evaluators)
            }
    return result


def share(cases: Iterable[bool]) -> float | None:
    """Return the share of true cases; None if there are none."""
    values = list(cases)
    return round(sum(values) / len(values), 4) if values else None


def confusion(
    records: Sequence[dict[str, Any]], rows: str, columns: str
) -> dict[str, dict[str, dict[str, int]]]:
    """Count crops by group, by the answer of ``rows`` and by that of ``columns``."""
    groups = dict.fromkeys(record["group"] for record in records)
    counts = Counter((r["group"], r[rows], r[columns]) for r in records)
    return {
        group: {row: {column: counts[group, row, column] for column in ANSWERS} for row in ANSWERS}
        for group in groups
    }


def markdown(figures: dict[str, Any]) -> str:
    """Format the figures as tables, in which evaluators are letters."""
    letters = dict(
        zip(figures["evaluators"], map(chr, range(ord("A"), ord("Z") + 1)), strict=False)
    )
    rows = []
    for group, shapes in figures["summary"].items():
        for shape, values in shapes.items():
            row = {"group": group, "requested shape": shape, "crops": values["crops"]}
            row |= {f"eye {name}": shown(values["eye"][name]) for name in ("right", "unclear")}
            for evaluator, letter in letters.items():
                row |= {f"{letter} {name}": shown(v) for name, v in values[evaluator].items()}
            rows.append(row)
    parts = [
        *(f"{letter}: {evaluator}" for evaluator, letter in letters.items()),
        "Right: share of the crops in which the eye or the evaluator sees the requested shape."
        " Agrees: share with the eye's answer, unclear or not.",
        table(rows),
        "Rows: the requested shape. Columns: the eye.",
        confusion_table(figures["asked_by_eye"], SHAPES),
    ]
    for evaluator, letter in letters.items():
        parts.append(f"Rows: the eye. Columns: {letter}.")
        parts.append(confusion_table(figures["eye_by_evaluator"][evaluator], ANSWERS))
    return "\n\n".join(parts) + "\n"


def confusion_table(counts: dict[str, Any], rows: Sequence[str]) -> str:
    return table(
        [
            {"group": group, "": row} | by_row[row]
            for group, by_row in counts.items()
            for row in rows
        ]
    )


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def compare(out: Path, evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Compute the figures of a sheet with complete answers.

    Raises:
        UserError: the folder has no sheet, or its answers are incomplete or invalid.
    """
    for name in (KEY, ANSWER_SHEET):
        if not (out / name).is_file():
            raise UserError(f"{out} has no sheet: {name} is missing; run sheet first")
    names = [evaluator.name for evaluator in evaluators]
    if len(set(names)) < len(names):
        raise UserError(f"--evaluator: the same one twice among {', '.join(names)}")
    key = json.loads((out / KEY).read_text("utf-8"))
    crops = {int(number): crop for number, crop in key.pop("crops").items()}
    eye = parse_answers((out / ANSWER_SHEET).read_text("utf-8"), len(crops))
    images = torch.stack([load_image(image_path(out, number)) for number in crops])
    labels = [crop["label"] for crop in crops.values()]
    answers = [evaluator_answers(evaluator, images, labels) for evaluator in evaluators]
    records = [
        {"number": number, "group": crop["group"], "asked": shape_of(crop["label"])}
        | {"label": crop["label"], "position": crop["position"], "eye": eye[number]}
        | {name: given[row] for name, given in zip(names, answers, strict=True)}
        for row, (number, crop) in enumerate(crops.items())
    ]
    return key | {
        "evaluators": names,
        "summary": summary(records, names),
        "asked_by_eye": confusion(records, "asked", "eye"),
        "eye_by_evaluator": {name: confusion(records, "eye", name) for name in names},
        "answers": records,
    }


def load_image(path: Path) -> Tensor:
    """Load a PNG as uint8, (3, H, W)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
