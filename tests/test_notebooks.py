"""The notebooks run from top to bottom, warn of nothing, and are committed as nobody ran them."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
PATIENCE = 600  # seconds for one cell, on a loaded machine
KEEPS = {"colab": ["outputs"]}  # the reader works on with them
KERNELS_OWN = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in a kernel of its own, in an empty folder: its outputs and that folder."""
    for module in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(module, reason=f"notebooks are not run: {module} is not installed")
    import nbformat
    from nbclient import NotebookClient

    work, temporary = tmp_path / "work", tmp_path / "temporary"
    for folder in (work, temporary):
        folder.mkdir()
    for name in KERNELS_OWN:  # nothing is read from, or written to, the user's home
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("ICLEVR_NOTEBOOK", "short")
    monkeypatch.setenv("TMPDIR", str(temporary))

    def call(path):
        # Where it is set, the kernel hides what processes below it write. pytest sets it anew here.
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
        notebook = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(work)}}
        NotebookClient(
            notebook, kernel_name="python3", timeout=PATIENCE, resources=resources
        ).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return [output for cell in cells for output in cell.outputs], tmp_path

    return call


@pytest.mark.slow
@each_notebook
def test_notebook_runs_shows_images_and_leaves_nothing(path, execute):
    outputs, folder = execute(path)
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) >= 4
    # What is shown as the text "<Figure …>" is a figure that the reader does not see.
    assert [data for data in shown if "image/png" not in data] == []
    left = [file.name for name in ("work", "temporary") for file in (folder / name).iterdir()]
    assert left == KEEPS.get(path.stem, [])


@each_notebook
def test_notebook_is_committed_without_outputs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    run = [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None]
    assert code, f"{path.name} holds no code"
    assert run == [], f"clear them: .venv/bin/nbstripout notebooks/{path.name}"
