"""``benchmarks/eye.py``, with a simulated person."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NAMES, SHAPES
from iclevr_diffusion.data.positions import FIRST, find_positions, fit_prior
from iclevr_diffusion.data.synthetic.dataset import Synthetic, synthetic_frames
from iclevr_diffusion.diffusion.io import save_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError

SHORT = {"cube": "c", "sphere": "s", "cylinder": "y"}


@pytest.fixture
def eye(program):
    return program("eye")


@pytest.fixture
def eye_sheet(program):
    return program("eye_sheet")


@pytest.fixture
def eye_table(program):
    return program("eye_table")


@pytest.fixture(scope="module")
def frames():
    return synthetic_frames(40)


@pytest.fixture(scope="module")
def model(frames):
    """A tiny untrained net that is told positions."""
    torch.manual_seed(0)
    net = UViT(
        image_size=64,
        channels=[8, 32],
        blocks=[1, 1],
        width=32,
        depth=1,
        head_dim=16,
        positions=True,
    )
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    net.layout.set_prior(fit_prior(frames.labels, positions))
    settings = {"sampler": "ddpm", "steps": 2}
    return Model(net.eval(), NoiseSchedule(timesteps=20), find_prediction("sample"), settings)


@pytest.fixture
def make(eye, eye_sheet, frames, model, tmp_path):
    """A sheet of a seed, in a folder of its own."""

    def call(seed: int, name: str = "sheet") -> Path:
        crops = eye_sheet.real_crops(frames, 2, seed)
        crops += eye_sheet.generated_crops("tiny", model, frames, 2, seed)
        eye_sheet.write_sheet(crops, {"seed": seed}, tmp_path / name)
        return tmp_path / name

    return call


def key_of(folder: Path) -> dict:
    return json.loads((folder / "key.json").read_text())["crops"]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def answer(folder: Path, answers) -> None:
    lines = (f"{number} {word}" for number, word in enumerate(answers, 1))
    (folder / "answers.txt").write_text("\n".join(lines))


def scene(**objects) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (L,) and positions (L, 2) of objects such as ``red_cube=(0.5, 0)``."""
    names = [name.replace("_", " ") for name in objects]
    positions = torch.zeros(len(NAMES), 2)
    for name, position in zip(names, objects.values(), strict=True):
        positions[ICLEVR_LABELS.index[name]] = torch.tensor(position)
    return ICLEVR_LABELS.encode(names), positions


@pytest.mark.parametrize(
    ("objects", "clear"),
    [
        ({"red_cube": FIRST, "blue_cube": (0.6, 0.0)}, ["blue cube"]),
        ({"red_cube": FIRST, "red_sphere": (0.6, 0.0)}, []),  # one color
        ({"red_cube": FIRST, "blue_cube": (0.25, -0.14)}, []),  # close
        ({"red_cube": FIRST, "blue_cube": (0.9, 0.0)}, []),  # cut off
        ({"red_cube": FIRST, "blue_cube": (float("nan"), 0.0)}, []),  # not known
        ({"blue_cube": (0.6, 0.3), "gray_sphere": (0.2, 0.5)}, []),  # near ones are larger,
        ({"blue_cube": (0.6, -0.4), "gray_sphere": (0.2, -0.2)}, ["blue cube", "gray sphere"]),
    ],
)
def test_only_outer_objects_that_are_clear_to_see_are_shown(eye_sheet, objects, clear):
    found = eye_sheet.clear_objects(*scene(**objects))
    assert [NAMES[index] for index in found] == clear


def test_every_group_has_as_many_of_each_shape(make):
    crops = list(key_of(make(0)).values())
    for group in ("real", "tiny"):
        mine = [crop for crop in crops if crop["group"] == group]
        shapes = [crop["label"].split()[1] for crop in mine]
        assert {shape: shapes.count(shape) for shape in SHAPES} == dict.fromkeys(SHAPES, 2)


def test_no_two_crops_of_a_group_show_one_sequence(eye_sheet, frames):
    chosen = [crop.key["frame"] for crop in eye_sheet.real_crops(frames, 4, 0)]
    assert len(chosen) == 12
    sequences = dict(zip(frames.names, frames.sequences.tolist(), strict=True))
    assert len({sequences[name] for name in chosen}) == 12


def test_too_few_clear_objects_are_refused(eye_sheet, frames):
    with pytest.raises(UserError, match=r"needs 500 of every shape per group, but only \d+ cubes"):
        eye_sheet.real_crops(frames, 500, 0)


def test_pages_say_numbers_only_and_their_order_tells_no_group(make, monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *words: texts.append(words[2]))
    folder = make(0)
    assert texts == [str(number) for number in range(1, 13)]
    with Image.open(folder / "page_01.png") as page:
        assert not page.info
    lines = (folder / "answers.txt").read_text().splitlines()
    assert lines[1:] == [f"{number} ?" for number in range(1, 13)]
    groups = [crop["group"] for crop in key_of(folder).values()]
    assert groups not in (sorted(groups), sorted(groups, reverse=True))
    images = {f"images/{number:03d}.png" for number in range(1, 13)}
    assert set(contents(folder)) == {"key.json", "answers.txt", "page_01.png", *images}


def test_the_seed_decides_the_sheet(make):
    one = contents(make(0, "one"))
    assert contents(make(0, "again")) == one
    assert contents(make(1, "other"))["page_01.png"] != one["page_01.png"]


def test_generated_objects_are_cut_out_where_the_network_was_told_they_are(
    eye_sheet, frames, model
):
    told = []
    model.net.register_forward_pre_hook(lambda net, given: told.append(given[2:4]))
    crops = eye_sheet.generated_crops("tiny", model, frames, 2, 0)
    labels, positions = told[-1]
    assert len(labels) == len(crops) == 6
    for crop, row, where in zip(crops, labels, positions, strict=True):
        label = ICLEVR_LABELS.index[crop.key["label"]]
        assert row[label] == 1
        assert where[label].tolist() == pytest.approx(crop.position, abs=1e-4)


@pytest.mark.parametrize("position", [(0.0, -0.14), (0.9, 0.9), (-0.9, 0.3)])
def test_a_crop_lies_inside_the_image_and_tells_where_its_object_is(eye_sheet, position):
    x, y = (int((value + 1) * 32) for value in position)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, y, x] = 255
    pixels, (left, top) = eye_sheet.cut(image, position)
    assert pixels.shape == (3, 24, 24)
    assert pixels[0, int(top), int(left)] == 255


def test_a_sheet_is_made_and_tabulated_without_a_word_of_its_key(
    eye, run, monkeypatch, tmp_path, model
):
    weights = save_model(model, tmp_path / "weights")
    source = Synthetic(100, cache=tmp_path / "cache")
    monkeypatch.setattr(eye, "choose_source", lambda *_: source)
    monkeypatch.setattr(eye, "HELD_OUT_SHARE", 0.4)
    arguments = ("sheet", "out", "--root", "any", "--weights", str(weights), "--crops", "7")
    code, output, errors = run(eye, *arguments)
    assert (code, errors) == (0, "")
    assert not any(word in output for word in (*COLORS, *SHAPES, "real"))
    assert "12 crops" in output  # two of each shape in each group
    assert run(eye, *arguments)[0] == 2  # nothing is overwritten
    code, output, errors = run(eye, "table", "out", "--json", "figures.json")
    assert (code, output) == (2, "")
    assert errors.startswith("error: answers.txt: 12 of 12 are not answered: 1, 2, 3,")
    crops = key_of(Path("out"))
    answer(Path("out"), (SHORT[crop["label"].split()[1]] for crop in crops.values()))
    code, output, _ = run(eye, "table", "out", "--json", "figures.json")
    assert code == 0
    figures = json.loads(Path("figures.json").read_text())
    assert Path("out/table.md").read_text() in output
    name, second = figures["evaluators"]
    assert f"A: {name}" in output
    assert f"B: {second}" in output
    assert len(figures["answers"]) == 12
    for group in ("real", str(weights)):
        assert figures["summary"][group]["all"]["eye"]["right"] == 1
    # It reads synthetic frames without a mistake.
    assert figures["summary"]["real"]["all"][name] == {"right": 1, "unclear": 0, "agrees": 1}


def test_answers_are_words_or_letters(eye_table):
    text = "# all\n1 cube\n2  S # small\n\n4 UNCLEAR\n3 y\n5 u\n"
    assert eye_table.parse_answers(text, 5) == {
        1: "cube",
        2: "sphere",
        3: "cylinder",
        4: "unclear",
        5: "unclear",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 c\n2 ?\n", "answers.txt: 2 of 3 are not answered: 2, 3"),
        ("1 c\n2 box\n3 c", "answers.txt, line 2: 'box' is not one of cube, sphere, cylinder"),
        ("1 c\n1 s\n", "answers.txt, line 2: number 1 is answered twice"),
    ],
)
def test_incomplete_and_wrong_answers_are_refused(eye_table, text, message):
    with pytest.raises(UserError) as error:
        eye_table.parse_answers(text, 3)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class Scripted(Evaluator):
    """Sees what it is told to in each image."""

    name, num_features, max_count = "scripted", 1, 0

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def classify(self, images):
        scores = torch.zeros(len(images), len(NAMES))
        for row, names in zip(scores, self.seen, strict=True):
            row[[ICLEVR_LABELS.index[name] for name in names]] = 0.9
        return ClassifierOutput(scores, None, torch.zeros(len(images), 1))


def test_an_evaluator_answers_with_the_one_shape_of_that_color(eye_table):
    seen = [("red cube", "blue sphere"), ("red cube", "red sphere"), ("blue sphere",), ()]
    images = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    answers = eye_table.evaluator_answers(Scripted(seen), images, ["red cylinder"] * 4)
    assert answers == ["cube", "unclear", "unclear", "unclear"]


def records(group, *rows):
    keys = ("asked", "eye", "A")
    return [{"group": group} | dict(zip(keys, row, strict=True)) for row in rows]


def test_shares_and_agreement_are_those_counted_by_hand(eye_table):
    rows = records("real", ("cube", "cube", "cube"), ("sphere", "sphere", "sphere")) + records(
        "tiny",
        ("cube", "cylinder", "cube"),
        ("cube", "unclear", "unclear"),
        ("cube", "cube", "cube"),
        ("cylinder", "cylinder", "cube"),
    )
    found = eye_table.summary(rows, ["A"])
    assert found["real"]["all"]["A"] == {"right": 1, "unclear": 0, "agrees": 1}
    assert found["tiny"]["cube"]["crops"] == 3
    assert found["tiny"]["cube"]["eye"] == {"right": 0.3333, "unclear": 0.3333, "agrees": 1}
    assert found["tiny"]["cube"]["A"] == {"right": 0.6667, "unclear": 0.3333, "agrees": 0.6667}
    assert found["tiny"]["all"]["eye"]["right"] == 0.5
    assert found["tiny"]["all"]["A"] == {"right": 0.5, "unclear": 0.25, "agrees": 0.5}
    assert found["tiny"]["sphere"]["eye"]["right"] is None
    table = eye_table.confusion(rows, "eye", "A")["tiny"]
    assert table["cylinder"] == {"cube": 2, "sphere": 0, "cylinder": 0, "unclear": 0}
    assert sum(sum(row.values()) for row in table.values()) == 4


def test_two_evaluators_are_shown_side_by_side(eye_table, make):
    folder = make(0)
    crops = list(key_of(folder).values())
    answer(folder, (SHORT[crop["label"].split()[1]] for crop in crops))
    right, blind = Scripted([[crop["label"]] for crop in crops]), Scripted([[]] * 12)
    blind.name = "blind"
    figures = eye_table.compare(folder, [right, blind])
    assert figures["summary"]["tiny"]["all"]["scripted"]["agrees"] == 1
    assert figures["summary"]["tiny"]["all"]["blind"] == {"right": 0, "unclear": 1, "agrees": 0}
    text = eye_table.markdown(figures)
    assert "A: scripted\n\nB: blind\n" in text
    header = next(line for line in text.splitlines() if line.startswith("| group"))
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    row = next(line for line in text.splitlines() if line.startswith("| tiny | all"))
    values = dict(zip(cells, [cell.strip() for cell in row.strip("|").split("|")], strict=True))
    assert (values["eye right"], values["A agrees"], values["B unclear"]) == ("1.000",) * 3
    with pytest.raises(UserError, match="the same one twice"):
        eye_table.compare(folder, [right, right])


def test_crops_are_those_of_the_positions_without_headings(eye_sheet, frames, model):
    net = DetailNet(64, [8], [1], timesteps=20, positions=True, headings=True)
    net.noise_to_signal.copy_(model.schedule.noise_to_signal())
    net.layout.density.copy_(model.net.layout.density)
    turned = dataclasses.replace(model, net=net.eval())
    crops = eye_sheet.generated_crops("tiny", turned, frames, 1, 0)
    assert len(crops) == len(SHAPES)
    assert all(len(crop.position) == 2 for crop in crops)
