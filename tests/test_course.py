"""What the course asks for: images by number, their scores, a report; images of others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import exit_code
from iclevr_diffusion import evaluate
from iclevr_diffusion.evaluation.image_folder import read_images
from iclevr_diffusion.utils.pixels import to_uint8

LIST = [["red cube"], ["cyan sphere", "gray cube"], ["red sphere", "cyan cylinder", "cyan cube"]]
NAMES = ("0.png", "1.png", "2.png")


@pytest.fixture(scope="module")
def evaluated(weights_folder, tmp_path_factory):
    """A folder with a list, and the outputs of an evaluation for the course."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "few.json").write_text(json.dumps(LIST))
    arguments = ("lists=[few.json]", "course=true", "seeds=2", "out=out")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(evaluate, f"weights={weights_folder}", *arguments) == 0
    return folder


@pytest.fixture
def course(run, evaluated, tmp_path):
    """A copy of them in the folder that ``run`` calls commands in."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)


def results(folder):
    return json.loads(Path(folder, "evaluation.json").read_text())


def test_course_gets_numbered_images_grids_a_strip_and_a_report(course):
    files = sorted(path.name for path in Path("out/images/few").iterdir())
    assert files == [*NAMES]
    with Image.open("out/images/few/2.png") as image:
        assert image.size == (16, 16)
    with Image.open("out/images/denoising.png") as image:
        assert image.size == (2 + 2 * (32 + 2), 2 + 2 * (32 + 2))  # two steps, x_t and x_0
    report = Path("out/report.md").read_text()
    for image in ("grid_few", "denoising"):
        assert f"(images/{image}.png)" in report
    assert "| few | saved images |" in report
    assert "| few | 2 seeds |" in report
    assert "These scores are not the course's" in report


def test_saved_images_score_as_the_report_says(run, course):
    code, _, err = run(evaluate, "images=out/images", "lists=[few.json]", "out=again")
    assert code == 0, err
    (setting,) = results("again")["settings"]
    scores = setting["lists"]["few"]
    shown = [scores["metrics"][name]["mean"] for name in ("accuracy", "exact_match")]
    shown.append(scores["metrics"]["count_accuracy"]["mean"])
    row = f"| few | saved images | {' | '.join(f'{value:.4f}' for value in shown)} |"
    assert row in Path("out/report.md").read_text()
    assert scores["second_evaluator"].keys() == {"accuracy", "exact_match"}
    assert {"color", "shape", "count", "joint"} <= scores["factors"].keys()
    assert results("again")["images"] == "out/images"
    table = Path("again/evaluation.md").read_text()
    assert table.startswith("Images of out/images, scored as they are.")
    assert "| list | conditions | accuracy |" in table
    assert Path("again/grid_few.png").is_file()
    assert not Path("again/strip.png").exists()


@pytest.mark.slow
def test_images_have_distances_to_given_frames(run, course):
    frames = ("data=synthetic", "data.sequences=4", "data.image_size=16", "reference_frames=6")
    arguments = ("images=out/images", "lists=[few.json]", "out=again")
    code, _, err = run(evaluate, *arguments, *frames)
    assert code == 0, err
    (setting,) = results("again")["settings"]
    assert setting["lists"]["few"]["distances"].keys() == {"frechet", "kernel"}


def test_images_are_ordered_by_number_and_keep_their_values(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11, 3, 20, 20), generator=generator, dtype=torch.uint8)
    folder = tmp_path / "mine"
    folder.mkdir()
    for index, pixels in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    shutil.move(folder / "3.png", folder / "03.png")
    (folder / "notes.txt").write_text("not an image, and ignored")
    read = read_images(tmp_path, {"mine": [("red cube",)] * 11})["mine"]
    assert torch.equal(to_uint8(read), images)
