"""What is printed, where streams are closed, full, or of another encoding."""

import io
import os
import subprocess
import sys

import pytest

from iclevr_diffusion.utils.terminal import HANDLER, Output, make_safe

PRINTS = """
import os, sys
from iclevr_diffusion.utils.terminal import make_safe
make_safe()
for line in range(2_000):
    print("±" * 50, line)
print("error: ×", file=sys.stderr)
open(sys.argv[1], "w").write("went on")
print(sys.stdin.read(), end="")
"""


def shell(command, folder, **environment):
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        env={**os.environ, "PYTHON": sys.executable, "CODE": PRINTS, **environment},
    )


@pytest.mark.parametrize(
    "rest",
    [
        "| head -1",
        "<&- >&- 2>&-",
        pytest.param(
            "> /dev/full",
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="not Linux"),  # noqa: PTH110
        ),
    ],
)
def test_a_program_continues_without_its_streams(tmp_path, rest):
    stdin = "" if "<" in rest else "< /dev/null"
    done = shell(f'"$PYTHON" -c "$CODE" out {stdin} {rest}', tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out").read_text("utf-8") == "went on"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp950"])
def test_characters_that_an_encoding_lacks_are_replaced(tmp_path, encoding):
    command = '"$PYTHON" -c "$CODE" out < /dev/null | tail -1'
    done = shell(command, tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert done.stdout.endswith("1999\n")


def test_replacements_say_what_they_stand_for():
    text = "±.01 4×4 → … ε 資 naïve"
    assert text.encode("ascii", HANDLER) == b"+-.01 4x4 -> ... eps ? na?ve"
    assert "資".encode("cp950", HANDLER) == "資".encode("cp950")


def test_a_stream_that_fails_once_is_dropped(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        output = io.TextIOWrapper(io.BufferedWriter(Output(writer)), encoding="utf-8")
        for _ in range(3):
            print("nobody reads this", file=output, flush=True)
    finally:
        os.close(writer)


def test_streams_of_others_stay(monkeypatch):
    others = io.StringIO()
    monkeypatch.setattr(sys, "stdout", others)
    make_safe()
    assert sys.stdout is others
