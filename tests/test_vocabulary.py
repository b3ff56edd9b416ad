"""Words that this project has retired in favor of the field's."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RETIRED = {
    r"\bdoors?\b": "command",
    r"\b(drawer|drawers|drawings?)\b": "pipeline, sample",
    r"\bpictures?\b": "image",
    r"\b(scorecards?|examinations?|tally|tallies)\b": "evaluation report, metrics",
    r"\bexact[ _]sets?\b": "exact match",
    r"\bright[ _]numbers?\b": "count accuracy",
    r"\bjudges?\b": "evaluator",
    r"\breaders?\b": "classifier",
    r'(?<![".])\bspoil\w*': "corrupted",  # but for a key of random numbers and an old setting
    r"\bgoes[ _]on\b": "resumes, continues",
    r"\ban? (image|picture) trained on\b|\b(an_image|a_picture)\b": "per training image",
    r"\b(?:flops|seconds|batches|epochs) an? [a-z]+\b": "per …",
    r"\bis no number\b": "is NaN or infinite",
    r"^\$ ": "the command alone, so that a copy of it runs",
}
# Libraries draw: matplotlib's axes, PIL's ImageDraw, hypothesis's draw().
FILES = [
    path
    for pattern in ("src/**/*.py", "conf/**/*.yaml", "docs/*.md", "*.md", "notebooks/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
]


def test_no_retired_word_is_used():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} → {instead}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        for word, instead in RETIRED.items()
        for match in re.finditer(word, line, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)
