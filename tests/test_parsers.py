"""Whatever a file or a text holds, its parser gives a valid result, or says why not in one line."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as numpy_strategies
from PIL import Image

from bad_input_cases import FRAME, SCHEDULER, TENSORS, UNET, good_folder
from iclevr_diffusion.data.conditions import read_conditions
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.iclevr.decode import BadFrameError, decode_frame
from iclevr_diffusion.data.labels import COLORS, ICLEVR_LABELS, NAMES
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import PACKAGED, Evaluator, load_evaluator
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.json import read_json

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,  # the same examples everywhere: a failure here is one that anyone can repeat
    database=None,
    suppress_health_check=list(HealthCheck),
)
slow = settings(quick, max_examples=25)

# What people write, and pieces of it.
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*NAMES, *COLORS, ",", " ", "s", "\n", "\0"])).map("".join),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
label_lists = st.lists(st.lists(texts, max_size=3) | values, max_size=3)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A valid file, cut, or with some bytes changed, put in or taken out."""
    result = bytearray(content)
    # Mostly the beginning, where formats say what they are.
    places = st.integers(0, min(len(content), 2000) - 1) | st.integers(0, len(content) - 1)
    for _ in range(draw(st.integers(1, 3))):
        place = min(draw(places), len(result))
        kind = draw(st.sampled_from(["flip", "put", "take", "cut"]))
        if kind == "flip" and place < len(result):
            result[place] ^= draw(st.integers(1, 255))
        elif kind == "put":
            result[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "take":
            del result[place : place + draw(st.integers(1, 8))]
        elif kind == "cut":
            del result[place:]
    return bytes(result)


def json_bytes(strategy):
    return strategy.map(lambda value: json.dumps(value).encode())


def any_json(valid: bytes):
    return st.binary(max_size=200) | json_bytes(values) | damaged(valid)


def changed_object(valid: bytes):
    """A JSON object with other values under its keys, and some other keys."""
    content = json.loads(valid)
    others = st.dictionaries(st.sampled_from([*content, "extra", "_class_name"]), values)
    return others.map(lambda changes: json.dumps(content | changes).encode())


@contextmanager
def one_line(most=400):
    """The block may refuse its input in one line, and do nothing else that is wrong."""
    try:
        yield
    except UserError as error:
        message = str(error).replace(str(Path.cwd()), "")
        assert message
        assert "\n" not in message, message
        assert len(message) < most, message


@pytest.fixture(scope="module")
def folder():
    """A folder where all is well, as the working folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        good_folder(Path(name))
        os.chdir(name)
        yield Path(name)
        os.chdir(before)


@contextmanager
def instead(path: Path | str, content: bytes):
    """A file with another content."""
    path = Path(path)
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def is_label_set(value) -> bool:
    return 1 <= len(value) == len(set(value)) and set(value) <= set(NAMES)


@quick
@given(texts)
def test_label_text(text):
    with one_line():
        assert is_label_set(ICLEVR_LABELS.check(text))
    assert ICLEVR_LABELS.find(text) in (None, *NAMES)


@quick
@given(st.lists(texts, max_size=60))
def test_label_lists(names):
    with one_line():
        assert is_label_set(ICLEVR_LABELS.check(names))


@quick
@given(st.permutations(NAMES), st.integers(0, 24))
def test_labels_in_any_order_are_kept(names, count):
    text = ",".join(f" {name.upper()}s " for name in names[:count])
    with one_line():
        assert ICLEVR_LABELS.check(text) == tuple(names[:count])


@quick
@given(any_json(b'{"a": [1, null, "x"]}'))
def test_json(folder, content):
    Path("any.json").write_bytes(content)
    with one_line():
        read_json(Path("any.json"))


@quick
@given(any_json(b'[["red cube"], ["blue sphere", "gray cube"]]') | json_bytes(label_lists))
def test_conditions(folder, content):
    with instead("mine.json", content), one_line():
        result = read_conditions("mine.json")
        assert result
        assert all(is_label_set(label_set) for label_set in result)


@quick
@given(st.data())
def test_train_json(folder, data):
    valid = Path("data/train.json").read_bytes()
    names = st.sampled_from([FRAME, "gone.png", "../x.png", "/x", "a\\b", ""]) | texts
    entries = st.dictionaries(names, st.lists(texts, max_size=3) | values, max_size=4)
    content = data.draw(any_json(valid) | json_bytes(entries) | changed_object(valid))
    shutil.rmtree("cache", ignore_errors=True)
    with instead("data/train.json", content):
        source = ICLEVR("data", 16, "cache")
        try:
            with one_line(most=2000):  # it tells everything that is wrong
                source.prepare_data()
                frames = source.load_frames()
                assert set(frames.names) <= set(os.listdir("data/iclevr"))  # noqa: PTH208
                assert frames.images.shape == (len(frames.labels), 3, 16, 16)
                assert frames.labels.sum(1).min() >= 1
                return
        finally:
            refused = not Path("cache").exists()
        assert refused


@quick
@given(st.data())
def test_objects_json(folder, data):
    valid = Path("data/objects.json").read_bytes()
    content = data.draw(any_json(valid) | changed_object(valid))
    with instead("data/objects.json", content), one_line():
        ICLEVR("data", 16, "cache").sequences()


@settings(quick, max_examples=200)
@given(st.data())
def test_images(folder, data):
    valid = Path("data/iclevr", FRAME).read_bytes()
    Image.open(f"data/iclevr/{FRAME}").save("frame.jpg")
    jpeg = Path("frame.jpg").read_bytes()
    content = data.draw(st.binary(max_size=200) | damaged(valid) | damaged(jpeg))
    Path("any.png").write_bytes(content)
    with suppress(BadFrameError):  # its message is one of a few constants
        image = decode_frame(Path("any.png"), 16)
        assert (image.shape, image.dtype) == ((3, 16, 16), "uint8")


def is_model(model: Model) -> bool:
    weights_are_finite = all(bool(p.isfinite().all()) for p in model.net.parameters())
    return weights_are_finite and model.image_shape[0] == 3 and model.schedule.timesteps >= 1


@pytest.mark.parametrize(
    "file", [UNET, SCHEDULER, "weights/sampling.json", "weights/data.json"], ids=os.path.basename
)
@slow
@given(data=st.data())
def test_json_of_weights(folder, file, data):
    valid = Path(file).read_bytes()
    content = data.draw(changed_object(valid) | any_json(valid))
    with instead(file, content), one_line():
        assert is_model(load_model("weights"))


@pytest.mark.parametrize("file", [TENSORS, "model.ckpt"], ids=os.path.basename)
@slow
@given(data=st.data())
def test_tensors_of_weights(folder, file, data):
    content = data.draw(st.binary(max_size=200) | damaged(Path(file).read_bytes()))
    with instead(file, content), one_line():
        assert is_model(load_model("model.ckpt" if file == "model.ckpt" else "weights"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@slow
@given(st.data())
def test_contents_of_checkpoints(folder, data):
    content = torch.load("model.ckpt", weights_only=True)
    if data.draw(st.booleans()):
        part = data.draw(st.sampled_from(["model", "callbacks", "state_dict"]))
        content[part] = data.draw(plain)
    else:
        part = content["model"][data.draw(st.sampled_from(["net", "schedule"]))]
        part |= data.draw(st.dictionaries(st.sampled_from([*part, "extra"]), plain, max_size=3))
    torch.save(content, "changed.ckpt")
    with one_line():
        assert is_model(load_model("changed.ckpt"))


@pytest.mark.slow
@slow
@given(st.data())
def test_checkpoints_of_other_things(folder, data):
    arrays = numpy_strategies.arrays("float32", numpy_strategies.array_shapes(max_side=3))
    content = data.draw(plain | arrays.map(torch.tensor))
    torch.save(content, "other.ckpt")
    with one_line():
        load_model("other.ckpt")
    with one_line():
        load_evaluator("other.ckpt")


@pytest.mark.slow
@slow
@given(st.data())
def test_evaluators(folder, data):
    content = data.draw(st.binary(max_size=200) | damaged(PACKAGED.read_bytes()))
    for name in ("any.safetensors", "any.pth"):
        Path(name).write_bytes(content)
        with one_line():
            assert isinstance(load_evaluator(name), Evaluator)


@quick
@given(
    st.binary(max_size=100) | damaged(b"step,train/loss,val/loss\r\n5,0.5,\r\n10,0.25,0.125\r\n")
)
def test_metrics(folder, content):
    Path("metrics.csv").write_bytes(content)
    with one_line():
        for row in read_metrics(Path("metrics.csv")):
            assert all(isinstance(value, float) for value in row.values())
