"""The commands on bad input: one line, exit code 2, and nothing on the disk is changed."""

import hashlib
import importlib
import shutil
from collections import Counter
from pathlib import Path

import pytest

from bad_input_cases import CASES, Case, good_folder
from iclevr_diffusion import sample

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    good_folder(folder)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every file with its content's hash, every link with where it leads, every folder."""
    result = {}
    for path in folder.rglob("*"):
        kind = "folder"
        if path.is_symlink():
            kind = f"link to {path.readlink()}"
        elif path.is_file():
            kind = hashlib.sha256(path.read_bytes()).hexdigest()
        result[str(path.relative_to(folder))] = kind
    return result


# Neighbours in the list are alike, so every fourth runs with the fast tests, and all with the slow.
FAST = 4


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=pytest.mark.slow if number % FAST else ())
        for number, case in enumerate(CASES)
    ],
)
def test_bad_input_ends_with_one_line_and_code_2_and_changes_nothing(
    case: Case, run, good, tmp_path, recwarn
):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    case.damage(tmp_path)
    before = tree(tmp_path)
    program = importlib.import_module(f"iclevr_diffusion.{case.command}")
    code, out, err = run(program, *case.all_arguments)
    assert code == 2, err
    for inside in ("Traceback", "search path", "provider=", "HYDRA_FULL", "in struct", "hydra.cc"):
        assert inside not in out + err
    lines = err.splitlines()
    if "-m" in case.arguments:  # a line for each job
        assert all(line.startswith("error in job ") for line in lines)
    else:
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
    assert case.line in lines[0]
    assert tree(tmp_path) == before
    # Python would print them on lines of their own.
    assert not [w for w in recwarn if not issubclass(w.category, DeprecationWarning)]


def test_good_folder_is_good(run, good, tmp_path):
    """Otherwise the cases could be refused for another reason than theirs."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    for weights in ("weights", "model.ckpt"):
        case = Case("", "", "", "sample", (f"weights={weights}",))
        code, _, err = run(sample, *case.all_arguments)
        assert (code, err) == (0, "")


def test_every_case_has_a_name_of_its_own():
    assert Counter(case.name for case in CASES).most_common(1)[0][1] == 1


def test_the_page_on_reliability_says_how_many_there_are():
    page = (REPOSITORY / "docs" / "reliability.md").read_text("utf-8")
    assert f"| {len(CASES)} wrong inputs end with one line" in page
