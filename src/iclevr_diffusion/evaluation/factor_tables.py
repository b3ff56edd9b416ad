"""The factors of an evaluation as Markdown tables."""

from collections.abc import Iterator

from iclevr_diffusion.evaluation.evaluation_report import (
    NONE,
    sampling_cells,
    sampling_columns,
    table,
)
from iclevr_diffusion.evaluation.factors import FACTOR_FORMATS, FACTOR_TITLES, GROUPS
from iclevr_diffusion.evaluation.results import Evaluation, ListResult
from iclevr_diffusion.utils.statistics import Statistics

ABOUT_FACTORS = (
    "Factors: the share of images with the right colors, with the right shapes, with the right"
    " color on each shape (of the images with both right), and with the requested number of"
    " objects; the product of the four shares, and the share with all four right. If a model"
    " composes factors as if each were learned on its own, the last two are equal (Okawa et al."
    " 2023, arXiv 2310.09336)."
)
ABOUT_GROUPS = (
    "Share of requested objects that are shown, by color, shape and position, over all seeds."
    " Positions are relative to the center, where the first object of every training image is; an"
    " object may be both to the left and in front of it."
)
ABOUT_NUMBERS = (
    "By number of objects: share of requested objects that are shown, and exact match. Above three"
    " objects, the table also gives the evaluators' scores on rendered scenes with that number."
)


def factor_tables(evaluation: Evaluation) -> str:
    """Format the factors and the shares by group; an empty string if there are none."""
    lines: list[str] = []
    if rows := list(_factor_rows(evaluation)):
        columns = ["list", *sampling_columns(evaluation), *FACTOR_TITLES.values()]
        lines += ["", ABOUT_FACTORS, "", *table(columns, rows)]
    if rows := list(_group_rows(evaluation)):
        columns = ["list", *sampling_columns(evaluation), "by", "shown"]
        lines += ["", ABOUT_GROUPS, "", *table(columns, rows)]
    if rows := list(_number_rows(evaluation)):
        columns = ["list", *sampling_columns(evaluation), "objects", "shown", "exact match"]
        lines += ["", ABOUT_NUMBERS, "", *table([*columns, *_rendered_columns(evaluation)], rows)]
    return "\n".join([*lines, ""]) if lines else ""


def _results(evaluation: Evaluation) -> Iterator[tuple[list[str], ListResult]]:
    """Yield each result with the cells that name its list and its setting."""
    for setting, name, result in evaluation.results():
        yield [name, *sampling_cells(evaluation, setting, name)], result


def _factor_rows(evaluation: Evaluation) -> Iterator[list[str]]:
    for names, result in _results(evaluation):
        if result.factors:
            yield [*names, *(factor_text(result.factors.get(name), name) for name in FACTOR_TITLES)]


def factor_text(values: Statistics | None, name: str) -> str:
    """Format a factor: mean ± standard deviation; for the difference, also its interval."""
    if values is None:
        return NONE
    text = f"{values.mean:{FACTOR_FORMATS[name]}}"
    if values.std is not None:
        text += f" ± {values.std:.3f}"
    if name == "joint_minus_product" and values.interval is not None:
        text += " [{:+.3f}, {:+.3f}]".format(*values.interval)
    return text


def _group_rows(evaluation: Evaluation) -> Iterator[list[str]]:
    for names, result in _results(evaluation):
        for group in GROUPS:
            shares = result.shown_by_group.get(group, {})
            if shares and group != "number":
                text = ", ".join(f"{member} {share:.3f}" for member, share in shares.items())
                yield [*names, group, text]


def _number_rows(evaluation: Evaluation) -> Iterator[list[str]]:
    columns = _rendered_columns(evaluation)
    for names, result in _results(evaluation):
        for number, shown in result.shown_by_group.get("number", {}).items():
            figures = evaluation.rendered.get(number, {})
            rendered = [
                f"{figures[name]:.3f}" if name in figures else NONE for name in columns.values()
            ]
            exact = result.exact_by_number[number]
            yield [*names, number, f"{shown:.3f}", f"{exact:.3f}", *rendered]


def _rendered_columns(evaluation: Evaluation) -> dict[str, str]:
    """Map the titles of the columns for rendered scenes to their keys."""
    known = {name for figures in evaluation.rendered.values() for name in figures}
    titles = {
        "shown, rendered": "shown",
        "exact match, rendered": "exact_match",
        "shown, rendered, second": "second_shown",
        "exact match, rendered, second": "second_exact_match",
    }
    return {title: name for title, name in titles.items() if name in known}
