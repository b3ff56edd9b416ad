"""Write docs/bad_input.md: the error messages for bad input.

    python benchmarks/bad_input.py

The cases are those of tests/bad_input_cases.py; each is run as tests/test_bad_input.py runs it.
"""

import argparse
import contextlib
import importlib
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from iclevr_diffusion.cli import run_dir

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from bad_input_cases import CASES, Case, good_folder  # noqa: E402

HEAD = """# Bad input

The error messages of the commands. Each of these mistakes ends with exit code 2 and this one line
(in a sweep, one per job; here cut after 300 characters), before anything costly starts, and nothing
on disk is changed. The table is written by `python benchmarks/bad_input.py`;
`tests/test_bad_input.py` runs every case and checks that each has a row.

| where | what is wrong | the line |
| --- | --- | --- |
"""


def line_of(case: Case, good: Path) -> str:
    """Run the command in a copy of the good folder, and return its error message."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        shutil.copytree(good, name, dirs_exist_ok=True)
        case.damage(Path(name))
        run_dir.new_or_latest.cache_clear()
        run_dir.new_folder.cache_clear()
        GlobalHydra.instance().clear()
        sys.argv[1:] = case.all_arguments
        program = importlib.import_module(f"iclevr_diffusion.{case.command}")
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.suppress(SystemExit),
        ):
            program.main()
    return err.getvalue().strip().replace(name, ".").replace(str(REPOSITORY), "…")


def cell(text: str) -> str:
    """Format text as code in a cell of a Markdown table."""
    text = " ".join(text.split())
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return f"`{text}`".replace("|", "\\|")


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        good_folder(Path(name))
        for case in CASES:
            wrong = cell(case.wrong) if case.area in ("config value", "override") else case.wrong
            rows.append(f"| {case.area} | {wrong} | {cell(line_of(case, Path(name)))} |\n")
    (REPOSITORY / "docs" / "bad_input.md").write_text(HEAD + "".join(rows), encoding="utf-8")
    print(f"{len(rows)} cases in docs/bad_input.md")


if __name__ == "__main__":
    main()
