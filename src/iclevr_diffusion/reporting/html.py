"""A report as one self-contained HTML page."""

import base64
import hashlib
from pathlib import Path

from iclevr_diffusion.reporting import STYLE
from iclevr_diffusion.reporting.comparison import Report
from iclevr_diffusion.utils.templates import html_templates

HERE = Path(__file__).parent


def to_html(report: Report) -> str:
    """Render the page. All text is escaped, and the browser may load and run nothing else."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return (
        html_templates(HERE)
        .get_template("page.html")
        .render(
            report=report,
            style="".join(sheet.read_text("utf-8") for sheet in (STYLE, HERE / "page.css")),
            script=script,
            script_hash=base64.b64encode(digest).decode("ascii"),
        )
    )
