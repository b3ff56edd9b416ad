"""The table of factors in a report: what is right apart from the whole, for every list."""

from collections.abc import Sequence

from iclevr_diffusion.evaluation.factors import FACTOR_FORMATS, FACTOR_TITLES
from iclevr_diffusion.reporting.cells import Cell, figure, text
from iclevr_diffusion.reporting.groups import RunGroup
from iclevr_diffusion.reporting.scores import Scores
from iclevr_diffusion.reporting.tables import NUMBER, Column, Table
from iclevr_diffusion.utils.statistics import summarize


def factors(groups: Sequence[RunGroup]) -> Table:
    """List the factors of each group and list, the mean over its runs; only of evaluated runs."""
    columns = [Column("run"), Column("list")]
    columns += [Column(title, kind=NUMBER) for title in FACTOR_TITLES.values()]
    rows = [
        [text(group.label), text(name), *(_cell(group.scores, name, key) for key in FACTOR_TITLES)]
        for group in groups
        for name in dict.fromkeys(name for scores in group.scores for name in scores.factors)
    ]
    return Table(columns, rows, ["finished"] * len(rows))


def _cell(scores: Sequence[Scores], condition_list: str, factor: str) -> Cell:
    values = [of_run.factors.get(condition_list, {}).get(factor) for of_run in scores]
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        return Cell()
    found = summarize(known)
    cell = figure(found.mean, FACTOR_FORMATS[factor])
    if found.std is None:
        return cell
    return Cell(cell.text, deviation=f"± {found.std:.3f}", sort=cell.sort)
