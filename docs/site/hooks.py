"""Hooks of MkDocs: pages and files from outside ``docs/``, with their links rewritten.

The playable page is part of the site if ``make play`` has built it.
"""

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
PLAY = "play/index.html"
PLAY_LINK = re.compile(rf"\[([^\]]+)\]\({PLAY}\)")
CODE = re.compile(r"<(pre|code|style|script)\b.*?</\1>", re.DOTALL)
FORMULA = re.compile(r"\$([^$]+)\$")
OUTSIDE = (
    "benchmarks/README.md",
    "benchmarks/log.md",
    "benchmarks/results/*.json",
    "notebooks/*.ipynb",
    "src/iclevr_diffusion/diffusion/pretrained/README.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
)


@event_priority(100)  # before mkdocs-jupyter, which looks for notebooks
def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page, and the files that pages link to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted((BUILD / "play").rglob("*.*")):
        uri = path.relative_to(BUILD).as_posix()
        built = File(uri, str(BUILD), config.site_dir, config.use_directory_urls)
        built.inclusion = InclusionLevel.INCLUDED  # exclude_docs is for its sources in docs/
        files.append(built)
    if not (BUILD / PLAY).is_file():
        print("The site has no playable page: run make play before make docs.", file=sys.stderr)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of the repository, where pages lie in ``docs/``, to those of the site."""
    uri = page.file.src_uri
    if not (BUILD / PLAY).is_file():
        markdown = PLAY_LINK.sub(r"\1", markdown)
    if uri in ("index.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        return re.sub(r"\]\(docs/", "](", markdown)
    if "/" in uri:
        return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Convert the formulas of notebooks to MathML, which needs no script."""
    if not page.file.src_uri.endswith(".ipynb"):
        return content
    parts, end = [], 0
    for code in CODE.finditer(content):
        parts += [FORMULA.sub(_mathml, content[end : code.start()]), code[0]]
        end = code.end()
    return "".join(parts) + FORMULA.sub(_mathml, content[end:])


def _mathml(match: re.Match[str]) -> str:
    formula: str = convert(html.unescape(match[1]))
    return formula
