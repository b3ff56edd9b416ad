"""``docs/architecture.md`` names files that exist, and a reading order as long as it says."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def reading_order():
    """Return the files in the first column of the tables headed ``read``."""
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGE, re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", row)]
    return [ROOT / name if name.startswith("conf/") else package(name) for name in names]


def package(name):
    return ROOT / "src" / "iclevr_diffusion" / name


def lines_of_code(path):
    """Return the number of lines without imports, docstrings, comments and empty ones."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        return sum(bool(line.strip()) and line.strip()[0] != "#" for line in text.splitlines())
    nodes = [node for node in ast.walk(ast.parse(text)) if hasattr(node, "lineno")]
    left_out = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    strings = [node for node in nodes if isinstance(node, ast.Expr)]
    left_out += [node for node in strings if isinstance(node.value, ast.Constant)]
    skipped = {n for node in left_out for n in range(node.lineno, node.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in tokens if t.type not in LAYOUT for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - skipped)


def test_reading_order_is_as_long_as_the_page_says():
    length = sum(map(lines_of_code, reading_order()))
    said = int(re.search(r"about ([\d,]+) lines", PAGE)[1].replace(",", ""))
    assert length <= 1500
    assert abs(length - said) <= 50


def test_tree_names_the_packages():
    tree = PAGE.split("```")[1]
    named = set(re.findall(r"^(\w+)/", tree, re.MULTILINE))
    assert named == {path.parent.name for path in package("").glob("*/__init__.py")}
