"""Hooks of MkDocs: pages and files from outside ``docs/``, with their links rewritten."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    "benchmarks/README.md",
    "benchmarks/results/*.json",
    "notebooks/*.ipynb",
    "src/iclevr_diffusion/diffusion/pretrained/README.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the README as the first page, and the files that pages link to."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of the repository, where pages lie in ``docs/``, to those of the site."""
    uri = page.file.src_uri
    if uri in ("index.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        return re.sub(r"\]\(docs/", "](", markdown)
    if "/" in uri:
        return re.sub(r"\]\(((?:\.\./)+)docs/", r"](\1", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)
