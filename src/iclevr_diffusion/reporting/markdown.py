"""A report as Markdown: its tables and notes, for use in other documents."""

import re

from iclevr_diffusion.evaluation.evaluation_report import table
from iclevr_diffusion.reporting.cells import Cell
from iclevr_diffusion.reporting.comparison import Report
from iclevr_diffusion.reporting.tables import Column, Table


def to_markdown(report: Report) -> str:
    """Format a report without its images and curves."""
    parts = [f"# {escape(report.title)}", escape(report.subtitle), _table(report.comparison)]
    parts.append("\n".join(f"- {escape(note)}" for note in report.notes))
    sections = {
        "Held-out compositions": report.holdout,
        "Factors": report.factors,
        "Runs that did not finish": report.not_finished,
        "Settings that differ": report.settings,
        "Each run": report.runs,
    }
    for heading, content in sections.items():
        if content.rows:
            parts += [f"## {heading}", _table(content)]
    if report.problems:
        lines = [
            f"- {escape(run)}: {escape(problem)}"
            for run, problems in report.problems.items()
            for problem in problems
        ]
        parts += ["## What could not be read", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Escape text so that Markdown shows it as it is: no mark-up, no HTML, no end of a cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$#!])", r"\\\1", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)  # snake_case is not emphasis


def _table(content: Table) -> str:
    rows = [[_cell(cell) for cell in row] for row in content.rows]
    return "\n".join(table([_heading(column) for column in content.columns], rows))


def _heading(column: Column) -> str:
    return escape(f"{column.group}: {column.title}" if column.group else column.title)


def _cell(cell: Cell) -> str:
    note = f"({cell.note})" if cell.note else ""
    return escape(" ".join(filter(None, (cell.text, cell.deviation, note))))
