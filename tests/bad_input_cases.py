"""Bad input, one case a line: what is wrong, which command is given it, and what the command says.

Every case begins in a folder where all is well (:func:`good_folder`), and spoils one thing in it.
"""

import io
import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.io import save_model
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.schedule import NoiseSchedule, schedule_config
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.evaluation.classifier import PACKAGED
from iclevr_diffusion.models.known_networks import network_config
from iclevr_diffusion.models.unet import ConditionalUNet

TRAIN = {
    "CLEVR_train_000000_0.png": ["red cube"],
    "CLEVR_train_000000_1.png": ["red cube", "blue sphere"],
    "CLEVR_train_000001_0.png": ["yellow cylinder"],
    "CLEVR_train_000001_1.png": ["yellow cylinder", "gray cube"],
    "CLEVR_train_000002_0.png": ["cyan sphere"],
    "CLEVR_train_000002_1.png": ["cyan sphere", "green cube"],
}
FRAME = "CLEVR_train_000000_0.png"
NET = {
    "image_size": 32,
    "block_out_channels": [8, 16],
    "attention": [False, False],
    "mid_attention": False,
    "layers_per_block": 1,
    "norm_groups": 4,
}
SMALL = (
    "net=tiny",
    "trainer=cpu",
    "trainer.max_steps=1",
    "trainer.enable_progress_bar=false",
    "data.image_size=32",
    "data.sequences=2",
    "data.batch_size=2",
    "schedule.timesteps=20",
    "sampler.steps=2",
    "callbacks.scoring.sampler.steps=2",
)
USUAL = {  # the arguments of a command, where a case gives no others of these names
    "train": SMALL,
    "train_evaluator": (
        *(item for item in SMALL if item.startswith("trainer")),
        "data.sequences=2",
        "data.batch_size=2",
        "net.widths=[4,4,8]",
        "net.hidden=8",
    ),
    "sample": ("weights=weights", "labels='red cube'", "n=1"),
    "evaluate": ("weights=weights", "lists=[mine.json]", "seeds=1"),
    "report": (),
    "export": ("weights=weights", "out=exported"),
    "app": ("weights=weights",),
}

Damage = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    area: where in the input it is.
    wrong: what is wrong, in a few words.
    line: what is in the line that the command prints.
    command: which one is called.
    arguments: those that differ from the usual ones.
    damage: what is done to the good folder before.
    """

    area: str
    wrong: str
    line: str
    command: str = "train"
    arguments: tuple[str, ...] = ()
    damage: Damage = lambda folder: None

    @property
    def name(self) -> str:
        return f"{self.area}: {self.wrong}"

    @property
    def all_arguments(self) -> list[str]:
        given = {argument.lstrip("+~").split("=")[0] for argument in self.arguments}
        if "images" in given:  # which are not sampled
            given |= {"weights", "seeds"}
        usual = [item for item in USUAL[self.command] if item.split("=")[0] not in given]
        return [*usual, *self.arguments]


def good_folder(folder: Path) -> None:
    """A data package in ``data``, weights, a checkpoint, a run to resume, and a list to draw."""
    (folder / "data" / "iclevr").mkdir(parents=True)
    for number, name in enumerate(TRAIN):
        Image.fromarray(noise(number)).save(folder / "data" / "iclevr" / name)
    write_json(folder / "data" / "train.json", TRAIN)
    write_json(folder / "data" / "test.json", [["red cube"]])
    write_json(folder / "data" / "new_test.json", [["red cube", "blue sphere"]])
    write_json(folder / "data" / "objects.json", ICLEVR_LABELS.index)
    write_json(folder / "mine.json", [["red cube"], ["cyan sphere", "gray cube"]])
    torch.manual_seed(0)
    net = ConditionalUNet(**NET)
    schedule = NoiseSchedule(timesteps=20)
    sampling = {"sampler": "dpm_solver", "steps": 2, "guidance_scale": 1.0, "label_drop": 0.1}
    data = {"source": "synthetic", "sequences": 2, "seed": 0}
    save_model(Model(net, schedule, find_prediction("sample"), sampling, data), folder / "weights")
    checkpoint = {
        "model": {
            "net": network_config(net),
            "schedule": schedule_config(schedule),
            "prediction": "sample",
        },
        "callbacks": {},
        "state_dict": {f"net.{key}": value for key, value in net.state_dict().items()},
        "epoch": 0,
        "global_step": 1,
        "progress": {
            "epoch": 0,
            "batches": 1,
            "batches_per_epoch": 4,
            "steps": 1,
            "epoch_ended": False,
        },
        "settings": {"net": dict(NET), "batch_size": 2, "processes": 1},
        "loops": {},
    }
    torch.save(checkpoint, folder / "model.ckpt")
    (folder / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(folder / "model.ckpt", folder / "run" / "checkpoints" / "last.ckpt")
    (folder / "run" / "config.yaml").write_text("name: train\n")
    shutil.copy(PACKAGED, folder / "evaluator.safetensors")


def noise(seed: int, size: int = 32) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


# How to spoil one thing.


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def write(file: str, content: str | bytes) -> Damage:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(raw)


def rewrite(file: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def change_json(file: str, **changes: Any) -> Damage:
    """Other values in a JSON object; a value of None takes the key away."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        write_json(folder / file, kept)

    return damage


def train_json(name: str, value: Any) -> Damage:
    return lambda folder: write_json(folder / "data" / "train.json", TRAIN | {name: value})


def without(name: str) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def frame(content: bytes | Callable[[bytes], bytes]) -> Damage:
    change = (lambda old: content) if isinstance(content, bytes) else content
    return rewrite(f"data/iclevr/{FRAME}", change)


def frame_as(format: str) -> Callable[[bytes], bytes]:
    def convert(content: bytes) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(content)).save(file, format=format)
        return file.getvalue()

    return convert


def flipped(content: bytes) -> bytes:
    """A PNG with one bit of its pixels' data turned over."""
    position = content.index(b"IDAT") + 1000
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def png(width: int, height: int, *chunks: bytes, kind: int = 2, depth: int = 8) -> bytes:
    """A PNG whose checksums are right; ``chunks`` come after the header, each name and content."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (header, *chunks, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    )


ZEROS = zlib.compress(bytes(20_000_000))


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Something else in the position of a file or folder."""

    def damage(folder: Path) -> None:
        without(name)(folder)
        make(folder / name)

    return damage


def weights_with(change: Callable[[dict[str, torch.Tensor]], Any], file: str) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file(state, folder / file)

    return damage


def spoil_values(state: dict[str, torch.Tensor]) -> None:
    next(iter(state.values())).fill_(torch.nan)


def spoil_images(state: dict[str, torch.Tensor]) -> None:
    """Finite weights whose products are not."""
    for value in state.values():
        value.fill_(1e30)


def evaluator_of_nan(folder: Path) -> None:
    state = {key: value.float() for key, value in load_file(PACKAGED).items()}
    spoil_values(state)
    settings = json.dumps(
        {"kind": "residual", "widths": [24, 48, 112], "hidden": 256, "unclear": True}
    )
    save_file(state, folder / "evaluator.safetensors", metadata={"object_net": settings})


def evaluator_that_says(settings: str) -> Damage:
    return lambda folder: save_file(
        load_file(PACKAGED), folder / "evaluator.safetensors", metadata={"object_net": settings}
    )


def checkpoint_with(file: str, **changes: Any) -> Damage:
    """Other entries in a checkpoint; ``net`` and the like change the description of the model."""

    def damage(folder: Path) -> None:
        content = torch.load(folder / file, weights_only=True)
        for key, value in changes.items():
            part = content if key in content else content["model"]
            part[key] = part[key] | value if isinstance(value, dict) else value
        torch.save(content, folder / file)

    return damage


class Payload:
    """Unpickled, it makes the file ``ran`` in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def payload(file: str) -> Damage:
    """A checkpoint with code in it."""

    def damage(folder: Path) -> None:
        content = torch.load(folder / "model.ckpt", weights_only=True)
        torch.save(content | {"payload": Payload()}, folder / file)

    return damage


def raw_pickle(file: str) -> Damage:
    return lambda folder: (folder / file).write_bytes(pickle.dumps({"model": Payload()}))


def images(*names: str, size: tuple[int, int] = (16, 16)) -> Damage:
    """Images of those names for the list ``mine``, of two conditions."""

    def damage(folder: Path) -> None:
        (folder / "given" / "mine").mkdir(parents=True)
        for name in names:
            Image.new("RGB", size).save(folder / "given" / "mine" / name, format="png")

    return damage


def taken(folder: Path) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("mine")


# The cases.

DATA = ("data.root=data",)
ONE = f": 1 ({FRAME})"
DEEP = "[" * 100_000
UNET = "weights/unet/config.json"
TENSORS = "weights/unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "weights/scheduler/scheduler_config.json"
CKPT = ("weights=model.ckpt",)
OWN = ("evaluator.checkpoint=evaluator.safetensors",)
RESUME = ("resume=run",)
NOT_PLAIN = "file name that is not a plain name in iclevr/: 1 "
NO_LIST = "entry in train.json that is not a list of labels"


def data_folder(wrong: str, line: str, damage: Damage, arguments: tuple[str, ...] = DATA) -> Case:
    return Case("data folder", wrong, line, "train", arguments, damage)


def json_file(wrong: str, line: str, damage: Damage) -> Case:
    return Case("JSON file", wrong, line, "evaluate", DATA, damage)


def image(wrong: str, line: str, content: bytes | Callable[[bytes], bytes]) -> Case:
    return Case("image", wrong, line + ONE, "evaluate", DATA, frame(content))


def label(text: str, line: str, wrong: str = "") -> Case:
    return Case("label text", wrong or text, line, "sample", (f"labels={text}",))


def posthoc(setting: str, line: str) -> Case:
    arguments = ("callbacks=posthoc_ema", f"callbacks.posthoc_ema.{setting}")
    return Case("config value", f"posthoc_ema.{setting}", line, "train", arguments)


def early_stopping(setting: str, line: str) -> Case:
    arguments = ("callbacks=early_stopping", f"callbacks.early_stopping.{setting}")
    return Case("config value", f"early_stopping.{setting}", line, "train", arguments)


def value(argument: str, line: str, command: str = "train") -> Case:
    return Case("config value", f"{command} {argument}", line, command, (argument,))


def override(*arguments: str, line: str, command: str = "train") -> Case:
    return Case("override", f"{command} {' '.join(arguments)}", line, command, arguments)


def holdout(*arguments: str, line: str, kind: str = "pairs") -> Case:
    """Of held-out compositions."""
    return override(f"data/holdout={kind}", *arguments, line=line)


def detail(*arguments: str, line: str) -> Case:
    """Of the net that is trained on crops."""
    its = ("net=detail", "prediction=sample", "prediction.data_std=0.12", "data.crop_size=16")
    given = {argument.split("=")[0] for argument in arguments}
    beside = [item for item in its if item.split("=")[0] not in given]
    wrong = f"train net=detail {' '.join(arguments)}"
    return Case("config value", wrong, line, "train", (*beside, *arguments))


def experts(*arguments: str, line: str) -> Case:
    """Of experts by noise level."""
    own = ("experiment=detail", "net=experts", "data.image_size=64", "schedule.timesteps=1000")
    wrong = f"train experiment=detail {' '.join(arguments)}"
    return Case("config value", wrong, line, "train", (*own, *arguments))


def weights(
    wrong: str,
    line: str,
    damage: Damage = lambda folder: None,
    arguments: tuple[str, ...] = (),
    command: str = "sample",
) -> Case:
    return Case("weights", wrong, line, command, arguments, damage)


def given(wrong: str, line: str, damage: Damage, *arguments: str) -> Case:
    return Case("given images", wrong, line, "evaluate", ("images=given", *arguments), damage)


def conditions(wrong: str, line: str, content: str | bytes) -> Case:
    return Case("conditions file", wrong, line, "evaluate", (), write("mine.json", content))


CASES = [
    data_folder(
        "missing", "no i-CLEVR data: gone is not a folder", lambda folder: None, ("data.root=gone",)
    ),
    data_folder(
        "a file", "mine.json is not a folder", lambda folder: None, ("data.root=mine.json",)
    ),
    data_folder(
        "empty", "missing: 4 (iclevr, train.json, test.json, ...)", instead("data", Path.mkdir)
    ),
    data_folder(
        "without iclevr/",
        "missing: 1 (iclevr); found: train.json, test.json",
        without("data/iclevr"),
    ),
    data_folder(
        "iclevr/ still packed",
        "unpack data/iclevr.zip first",
        both(without("data/iclevr"), write("data/iclevr.zip", "PK")),
    ),
    data_folder(
        "two packages in it",
        "train.json: copy/train.json, data/train.json; set data.root to the folder of one",
        lambda folder: (
            (folder / "copy").mkdir(),
            write_json(folder / "copy" / "train.json", {"a.png": ["red cube"]}),
        ),
        ("data.root=.",),
    ),
    data_folder("iclevr/ empty", "file missing in iclevr/: 6", instead("data/iclevr", Path.mkdir)),
    data_folder(
        "iclevr/ a file",
        "iclevr: cannot be listed: Not a directory",
        instead("data/iclevr", Path.touch),
    ),
    data_folder("without train.json", "missing: 1 (train.json)", without("data/train.json")),
    data_folder("without test.json", "missing: 1 (test.json)", without("data/test.json")),
    data_folder(
        "a frame missing", "file missing in iclevr/" + ONE, without(f"data/iclevr/{FRAME}")
    ),
    data_folder(
        "a frame a dangling link",
        "file missing in iclevr/" + ONE,
        instead(f"data/iclevr/{FRAME}", lambda path: path.symlink_to("nowhere.png")),
    ),
    data_folder(
        "a frame a folder",
        "file missing in iclevr/" + ONE,
        instead(f"data/iclevr/{FRAME}", Path.mkdir),
    ),
    data_folder("not named", "data=iclevr needs data.root=", lambda folder: None, ("data=iclevr",)),
    data_folder(
        "named beside data=synthetic",
        "data=synthetic takes no data.root",
        lambda folder: None,
        ("data=synthetic", *DATA),
    ),
    Case(
        "data folder",
        "fewer frames than a batch",
        "do not fill one batch of 99; lower data.batch_size",
        "train",
        ("data.batch_size=99", *DATA),
    ),
    data_folder(
        "a cache that cannot be made",
        "mine.json/cache",
        lambda folder: None,
        ("paths.cache=mine.json/cache", *DATA),
    ),
    Case(
        "data folder",
        "missing, to evaluate",
        "gone is not a folder",
        "evaluate",
        ("data.root=gone",),
    ),
    Case(
        "data folder",
        "missing, to train the evaluator",
        "gone is not a folder",
        "train_evaluator",
        ("data.root=gone",),
    ),
    json_file("train.json empty", "train.json: the file is empty", write("data/train.json", "")),
    json_file(
        "train.json cut",
        "train.json: not valid JSON: Unterminated string",
        write("data/train.json", '{"a.png": ["red'),
    ),
    json_file(
        "train.json a list", "train.json: expected an object", write("data/train.json", "[]")
    ),
    json_file("train.json without entries", "lists no file", write("data/train.json", "{}")),
    json_file(
        "train.json not UTF-8", "not UTF-8 text (byte 0)", write("data/train.json", b"\xff\xfe{")
    ),
    json_file(
        "train.json of 100,000 brackets",
        "train.json: not valid JSON",
        write("data/train.json", DEEP),
    ),
    json_file(
        "train.json with a file twice",
        "'a.png' is listed twice",
        write("data/train.json", '{"a.png": ["red cube"], "a.png": ["gray cube"]}'),
    ),
    json_file(
        "name leaves the folder", NOT_PLAIN + "(../x.png)", train_json("../x.png", ["red cube"])
    ),
    json_file(
        "name absolute", NOT_PLAIN + "(/etc/passwd)", train_json("/etc/passwd", ["red cube"])
    ),
    json_file("name with a backslash", NOT_PLAIN + "(..\\\\x)", train_json("..\\x", ["red cube"])),
    json_file("name with a NUL", NOT_PLAIN + "(x\\x00.png)", train_json("x\0.png", ["red cube"])),
    json_file("name with a line break", "1 (a\\nb.png)", train_json("a\nb.png", ["red cube"])),
    json_file(
        "label unknown", f"unknown label: 1 ({FRAME}: purpel)", train_json(FRAME, ["purpel"])
    ),
    json_file("labels empty", "empty list of labels" + ONE, train_json(FRAME, [])),
    json_file(
        "label twice", "same label twice" + ONE, train_json(FRAME, ["red cube", "Red Cubes"])
    ),
    json_file("labels a string", NO_LIST + ONE, train_json(FRAME, "red cube")),
    json_file("labels numbers", NO_LIST + ONE, train_json(FRAME, [1])),
    json_file("test.json malformed", "test.json: not valid JSON", write("data/test.json", "[[")),
    json_file(
        "new_test.json a flat list",
        "new_test.json: entry 1: expected a list of labels",
        write("data/new_test.json", '["red cube"]'),
    ),
    json_file(
        "objects.json in another order",
        "objects.json: not the 24 labels of i-CLEVR",
        change_json("data/objects.json", **{"gray cube": 1, "red cube": 0}),
    ),
    json_file(
        "objects.json malformed", "objects.json: not valid JSON", write("data/objects.json", "{")
    ),
    image("empty", "empty file", b""),
    image("cut in its header", "damaged or truncated image", lambda content: content[:20]),
    image("cut in half", "damaged or truncated image", lambda c: c[: len(c) // 2]),
    image("a JPEG cut in half", "damaged or truncated image", lambda c: frame_as("JPEG")(c)[:500]),
    image("with a flipped bit", "damaged or truncated image", flipped),
    image("a web page", "not a PNG or JPEG image", b"<html>404</html>"),
    image("a GIF", "not a PNG or JPEG image", frame_as("GIF")),
    image("too wide", "image larger than 4096x4096 pixels", png(4097, 8, b"IDAT")),
    image(
        "a bomb of 50,000 x 50,000",
        "image larger than 4096x4096 pixels",
        png(50_000, 50_000, b"IDAT"),
    ),
    image(
        "a zlib bomb in its text",
        "damaged or truncated image",
        png(32, 32, b"zTXta\0\0" + ZEROS, b"IDAT"),
    ),
    image(
        "with 16 bits",
        "image that is not 8-bit color or gray",
        png(32, 32, b"IDAT", kind=0, depth=16),
    ),
    label("'red cub'", "unknown label 'red cub'; the closest are red cube"),
    label("'red'", "unknown label 'red'"),
    label("'red cube, red cube'", "label given twice: red cube"),
    label("''", "no label given; write for example"),
    label("[]", "no label given"),
    label("5", "unknown label '5'"),
    label("[1,2]", "unknown label '1'"),
    label("null", "labels must be text or a list of text, got null"),
    label("'red; rm -rf /'", "unknown label 'red'"),
    label("'two blue spheres'", "'two blue spheres' asks for more than one"),
    label("'a red ball'", "unknown label 'a red ball'; the closest are red sphere"),
    label("'a red cube and a red cube'", "label given twice: red cube"),
    label(f"'{'cube ' * 1000}'", "unknown label 'cube cube", "5,000 characters"),
    label("???", "labels is needed: write labels=…", "none"),
    value("data.batch_size=many", "data.batch_size must be a whole number, got 'many'"),
    value("data.batch_size=0", "data.batch_size must be in 1..1000000, got 0"),
    value("data.batch_size=true", "data.batch_size must be a whole number, got true"),
    value("data.source=nonsense", "data.source must be auto, iclevr or synthetic"),
    value("data.sequences=1000000000", "data.sequences must be in 1..1000000"),
    value("data.image_size=100000", "data.image_size"),
    value("data.image_size=30", "data.image_size=30 must be a multiple of 8"),
    value("data.val_fraction=nan", "data.val_fraction must be a finite number, got nan"),
    holdout("data.holdout.fraction=0", line="data.holdout.fraction must be above 0 and below 1"),
    holdout("data.holdout.fraction=1", line="data.holdout.fraction must be above 0 and below 1"),
    holdout("data.holdout.fraction=nan", line="data.holdout.fraction must be a finite number"),
    holdout("data.holdout.fraction=.001", line="0.001 of 276 pairs rounds to none; raise it"),
    holdout("data.holdout.fraction=.9", line="training frames, which do not fill one batch of 2"),
    holdout("data.holdout.size=4", line="data.holdout.size must be 2 or 3, got 4"),
    holdout("data.holdout.part=.2", line="there is no setting 'data.holdout.part'"),
    holdout("data.holdout.labels=[]", kind="labels", line="data.holdout.labels is empty"),
    holdout(
        "data.holdout.labels=[red cub]",
        kind="labels",
        line="data.holdout.labels: unknown label 'red cub'; the closest are red cube",
    ),
    holdout("data.holdout.objects=[0]", kind="count", line="data.holdout.objects must be"),
    holdout("data.holdout.objects=[99]", kind="count", line="objects=99: there are only 24 labels"),
    holdout(
        "data.holdout.objects=[1,2,3]",
        kind="count",
        line="data.holdout leaves none of the 52 conditions of the list validation",
    ),
    holdout("data.holdout.objects=[1,two]", kind="count", line="must be a list of whole numbers"),
    value("data.holdout=pairs", "is chosen with data/holdout=pairs"),
    value("data.holdout.fraction=.2", "data.holdout.fraction: the chosen data/holdout has no such"),
    value("data/holdout=pair", "there is no such data/holdout; did you mean pairs?"),
    value("data/holdout=pairs", "data.holdout is read from the weights", "evaluate"),
    value("data.device_resident=maybe", "data.device_resident must be auto, true or false"),
    value("seed=abc", "seed must be a whole number, got 'abc'"),
    value("seed=100000000000000000000", "seed must be a whole number of at most 64 bits"),
    value("net.labels=film", "net.labels must be one of embedding, concat, none; got 'film'"),
    value("net.mid_attention=maybe", "net.mid_attention must be true or false, got 'maybe'"),
    value("net.block_out_channels=64", "net.block_out_channels must be a list of whole numbers"),
    value("net.block_out_channels=[16,1000000]", "net.block_out_channels: each must be"),
    value("net.attention=[true]", "net.block_out_channels has 2 levels, attention 1"),
    value("net.layers_per_block=0", "net.layers_per_block must be a whole number in 1..64"),
    value("net.norm_groups=0", "net.norm_groups must be a whole number in 1..8192"),
    value("net.dropout=2", "net.dropout must be in [0, 1), got 2"),
    value("schedule.name=cosine", "no beta schedule named 'cosine'"),
    value("schedule.timesteps=1000000000000", "schedule.timesteps must be a whole number in 1"),
    override("schedule=linear", "schedule.beta_start=abc", line="finite number, got 'abc'"),
    override("schedule=linear", "schedule.beta_start=nan", line="a finite number, got nan"),
    override("schedule=linear", "schedule.beta_end=2", line="must be above 0 and below 1, got 2"),
    value("schedule.beta_end=0.05", "schedule.beta_end: the chosen schedule has no such setting"),
    value("prediction.name=noise", "prediction 'noise' is unknown here (known: epsilon, sample,"),
    value(
        "prediction.min_snr_gamma=inf", "prediction.min_snr_gamma must be a finite number or null"
    ),
    value("prediction.data_std=0", "prediction.data_std must be above 0, got 0"),
    value("prediction.timestep_shift=null", "prediction.timestep_shift must be a finite number"),
    value("sampler.name=euler", "sampler.name must be one of ddpm, ddim, dpm_solver, unipc"),
    value("sampler.steps=21", "sampler.steps=21 is more than the schedule's timesteps=20"),
    value("guidance.scale=-1", "guidance.scale must be 0 or more"),
    value("guidance.scale=nan", "guidance.scale must be a finite number, got nan"),
    value("guidance.scale=2", "needs weights that were trained with dropped labels"),
    value("guidance.label_drop=2", "guidance.label_drop must be in [0, 1]"),
    value("guidance.min_noise=-1", "guidance.min_noise must be 0 or more, got -1"),
    value("guidance.max_noise=0", "guidance.max_noise must be above min_noise=0, got 0"),
    value("guidance.max_noise=inf", "guidance.max_noise must be a finite number or null, got inf"),
    value("guidance.rescale=1.5", "guidance.rescale must be in [0, 1], got 1.5"),
    value("sampler.spacing=leading", "sampler.spacing must be one of trailing, karras"),
    override("sampler.spacing=karras", "sampler.max_noise=0", line="sampler.min_noise must be"),
    override("sampler.spacing=karras", "sampler.min_noise=0", line="sampler.min_noise"),
    override("sampler.spacing=karras", "sampler.min_noise=9", line="sampler.min_noise"),
    override("sampler.spacing=karras", "sampler.rho=0", line="sampler.rho"),
    override("sampler.spacing=karras", "sampler.rho=.001", line="rho=0.001 is too small for noise"),
    value("prediction.max_noise=0", "prediction.max_noise must be above 0, got 0"),
    value("prediction.noise_mean=0", "prediction.noise_mean and noise_std must be set together"),
    value("prediction.noise_std=-1", "prediction.noise_std must be above 0, got -1"),
    value("data.crop_size=16", "data.crop_size needs a network that trains on crops"),
    detail("data.crop_size=0", line="data.crop_size must be"),
    detail("data.crop_size=15", line="data.crop_size must be a multiple of 4"),
    detail("data.crop_size=64", line="data.crop_size must be a multiple of 4 of at most"),
    detail("data.crop_near_objects=2", line="data.crop_near_objects must be in [0, 1], got 2"),
    detail("net.channels=[]", line="net.channels"),
    detail(
        "net.channels=[0,16]",
        "net.blocks=[1,1]",
        line="net.channels: each must be a whole number in 1..1024",
    ),
    detail("net.blocks=[1]", line="net.channels has 3 levels, blocks 1"),
    detail("net.data_std=0", line="net.data_std must be"),
    detail("prediction=epsilon", line="DetailNet estimates x_0: it needs prediction=sample"),
    experts("net.coarse_weights=gone", line="gone"),
    experts("data/holdout=pairs", line="were not trained with this data.holdout"),
    Case(
        "config value",
        "train experiment=headings data/holdout=pairs",
        "net.weights=pretrained were not trained with this data.holdout",
        "train",
        (
            "experiment=headings",
            "net=detail_continued",
            "data/holdout=pairs",
            "data.image_size=64",
            "schedule.timesteps=1000",
        ),
    ),
    experts("net.coarse_weights=mine.json", line="mine.json"),
    experts("net.coarse_weights=weights", line="net.coarse_weights=weights"),
    experts("net.detail_weights=weights", line="net.detail_weights=weights"),
    experts("net.switch=0", line="net.switch must be"),
    experts(
        "prediction.max_noise=0.1", line="prediction.max_noise must be at least as large; got 0.1"
    ),
    experts(
        "data.crop_size=null",
        "prediction.max_noise=1",
        line="must be equal to it, since data.crop_size",
    ),
    experts("net.detail.blocks=[1]", line="net.detail.channels has 3 levels, blocks 1"),
    value("optimizer.lr=-1", "optimizer.lr must be above 0"),
    value("optimizer.lr=nan", "optimizer.lr must be a finite number, got nan"),
    value("optimizer.betas=0.9", "optimizer.betas must be a list of finite numbers, got 0.9"),
    value("optimizer.betas=[0.9]", "optimizer.betas must be two numbers in [0, 1)"),
    value("optimizer.weight_decay=-1", "optimizer.weight_decay must be 0 or more"),
    value("optimizer.warmup_steps=-1", "optimizer.warmup_steps must be 0 or more"),
    value("optimizer.matrix_lr=1e-3", "optimizer.matrix_lr is for optimizer=muon"),
    value("optimizer.lr_multiplier=0", "optimizer.lr_multiplier must be above 0"),
    value("prediction.sampled_as=noise", "prediction 'noise' is unknown here (known: epsilon"),
    value("published=much", "published must be"),
    value("trainer.limit_train_batches=0", "trainer.limit_train_batches must be above 0"),
    value("trainer.limit_train_batches=many", "trainer.limit_train_batches must be"),
    value("net=dcgan", "net=dcgan is a GAN, which has no schedule"),
    value("optimizer.decay=linear", "optimizer.decay must be one of constant, cosine, trapezoid"),
    value("optimizer.clip_norm=0", "optimizer.clip_norm must be above 0 or null"),
    value("optimizer.eps=-1", "optimizer.eps"),
    value("optimizer.final_lr_fraction=-1", "optimizer.final_lr_fraction"),
    value("callbacks.ema.decay=nan", "callbacks.ema.decay must be a finite number, got nan"),
    value("callbacks.ema.decay=2", "callbacks.ema.decay must be in [0, 1)"),
    value("callbacks.scoring.every_n_epochs=-1", "every_n_epochs must be 0 or more"),
    value("callbacks.scoring.sampler.steps=99", "callbacks.scoring.sampler.steps=99 is more"),
    value("callbacks.scoring.layout=dense", "layout must be one of clear, data; got 'dense'"),
    value("callbacks.scoring.layout=data", "layout=data: these weights take no positions"),
    value("callbacks.checkpoint.every_n_epochs=-1", "callbacks.checkpoint.every_n"),
    value("trainer.max_epochs=soon", "trainer.max_epochs must be a whole number or null"),
    value("trainer.max_epochs=0", "trainer.max_epochs must be at least 1, or -1; got 0"),
    override("trainer.max_epochs=-1", "trainer.max_steps=-1", line="would train without end"),
    override(
        *("trainer.max_epochs=-1", "trainer.max_steps=-1", "trainer.max_time=00:00:01:00"),
        "optimizer.decay=cosine",
        line="optimizer.decay=cosine needs trainer.max_epochs or max_steps; max_time alone",
    ),
    override(
        *("trainer.max_epochs=null", "trainer.max_steps=-1", "trainer.max_time=00:00:01:00"),
        line="optimizer.decay=cosine needs trainer.max_epochs or max_steps; max_time alone",
        command="train_evaluator",
    ),
    value("trainer.limit_train_batches=0.01", "is less than one of the"),
    value("+trainer.limit_val_batches=0.01", "is less than one of the"),
    value("trainer.overfit_batches=0.01", "is less than one of the"),
    value("trainer.val_check_interval=500", "is more than the"),
    value("trainer.max_time={seconds: -5}", "trainer.max_time must be above 0"),
    value("trainer.profiler=fast", "trainer.profiler must be one of simple, advanced, pytorch"),
    value("trainer.limit_train_batches=1e-4", "is less than one of", "train_evaluator"),
    value("trainer.max_epochs=0", "trainer.max_epochs must be at least 1", "train_evaluator"),
    override("+trainer.gradient_clip_val=1e-9", line="use optimizer.clip_norm=1e-09"),
    override("trainer.overfit_batch=1", line="did you mean trainer.overfit_batches?"),
    value("trainer.max_steps=0", "trainer.max_steps"),
    value("trainer.max_time=soon", "trainer"),
    value("trainer.precision=17", "trainer.precision must be one of auto, bf16-mixed"),
    value("trainer.precision=16-mixed", "trainer.precision=16-mixed needs a CUDA GPU"),
    value("trainer.precision=bf16-true", "trainer.precision must be one of auto, bf16-mixed"),
    override("schedule=linear", "schedule.timesteps=20000", line="leaves nothing of the image"),
    value("trainer.accelerator=toaster", "trainer: "),
    value("trainer.accelerator=tpu", "trainer: Requirement 'torch_xla"),
    value("trainer.accelerator=CPU", "; trainer=auto uses what this machine has"),
    value("data.root=", "data.root must be text or null, got '', which is empty"),
    value("out=", "out must be text or null, got '', which is empty", "sample"),
    posthoc("lengths=[]", "callbacks.posthoc_ema.lengths must be different values"),
    posthoc("lengths=[.3]", "callbacks.posthoc_ema.lengths must be between 0.005 and 0.28, got 0"),
    posthoc("every_n_updates=0", "callbacks.posthoc_ema.every_n_updates must be at least 1"),
    posthoc("dtype=int8", "callbacks.posthoc_ema.dtype must be one of float16, float32"),
    early_stopping("patience=0", "callbacks.early_stopping.patience must be at least 1, got 0"),
    early_stopping("min_delta=-1", "callbacks.early_stopping.min_delta must be 0 or more, got -1"),
    early_stopping("monitor=score/test/accuracy", "monitor must be one of score/validation, "),
    value("trainer.devices=0", "trainer: "),
    value("trainer.strategy=nonsense", "there is no such strategy; use auto, ddp"),
    value("trainer.strategy=dpp", "there is no such strategy; did you mean ddp?"),
    value("trainer.strategy=ddp_spawn", "use trainer.strategy=ddp"),
    value("+trainer.strategy._target_=my.Strategy", "trainer.strategy must be text, got {"),
    value("trainer.strategy=fsdp", "EMA and checkpoints need them whole: use trainer.strategy=ddp"),
    value("trainer.strategy=single_device", "use trainer.strategy=auto"),
    value("trainer.num_nodes=2", "needs a launcher that starts this command on each node"),
    value("trainer.num_nodes=0", "`num_nodes` must be a positive integer"),
    value("trainer.log_every_n_steps=0", "trainer.log_every_n_steps must be"),
    value("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch"),
    value("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches"),
    value("trainer.enable_progress_bar=5", "trainer.enable_progress_bar must be true or false"),
    override("logger.wandb.project=x", line="choose logger=wandb or logger=all"),
    override("+logger.wandb.project=x", line="the class to build; is logger=wandb missing?"),
    override("logger=wandb", "logger.wandb=5", line="logger.wandb must be a group of settings"),
    override("logger=wandb", "logger.wandb.project=a/b", line="Invalid project name 'a/b'"),
    override("logger=wandb", f"logger.wandb.group={'g' * 129}", line="must have 1 to 128"),
    override("logger=wandb", f"logger.wandb.tags=[{'t' * 65}]", line="between 1 and 64 characters"),
    override("logger=wandb", "logger.wandb.fallback=online", line="must be one of offline, error"),
    override("logger=wandb", "logger.wandb.start_timeout=0", line="must be above 0 seconds"),
    override("logger=wandb", "logger.wandb.entity=a/b", line="the name of a user or a team"),
    override("logger=wandb", f"logger.wandb.job_type={'j' * 129}", line="must have 1 to 128"),
    override("logger=wandb", "logger.wandb.mode=onlin", line="null, online, offline, disabled"),
    override("logger=wandb", "logger.wandb.log_model=true", line="false, best, all; got true"),
    value("paths.outputs=null", "paths.outputs must be text, got null"),
    value("paths.outputs=mine.json/out", "mine.json"),
    value("paths.outputs=/proc/x", "/proc/x"),
    value("resume=true", "resume=true: no run in outputs/train has begun"),
    value("hydra.run.dir=run", "resume it with resume=run, or name another folder"),
    value("hydra.run.dir=run/weights", "run/weights is among the files of the run"),
    override("--multirun", "hydra.sweep.dir=run/images/x", "seed=0,1", line="x is among the files"),
    override("--multirun", "hydra.run.dir=x", "seed=0,1", line="without -m; use hydra.sweep.dir"),
    value("hydra.sweep.dir=x", "hydra.sweep.dir=… is for a sweep, with -m; use hydra.run.dir"),
    value("hydra.run.dir=", "hydra.run.dir= is empty; name a folder, or leave it out"),
    override("--multirun", "hydra.sweep.dir=", "seed=0,1", line="hydra.sweep.dir= is empty"),
    value("data.root=~nobody-here/x", "~nobody-here/x: there is no such home folder"),
    value("data.root=資料, 家", "no i-CLEVR data: 資料, 家 is not a folder"),
    override("hydra.run.dir=run", "resume=gone", line="differ; leave out hydra.run.dir"),
    override("--multirun", "hydra.sweep.dir=run", "seed=0,1", line="resume it with resume=run"),
    override("--multirun", "hydra.sweep.subdir=x", "seed=0,1", line="is one folder for all jobs"),
    value("resume=gone", "no run has begun in that folder; try resume=true, the newest run"),
    value("resume=run/checkpoints/last.ckpt", "no run has begun in that folder; try resume=run"),
    value("resume=null", "resume must be true, false or a path, got null"),
    value("logger=null", "choose an option by its name (data, model, "),
    value("experiment=[flow,lab]", "experiment=[flow,lab]: experiment takes one option"),
    value("--resolve", "The --resolve flag can only be used in conjunction with --cfg or --help"),
    value("device=meta", "device=meta: ", "sample"),
    value("device=gpu", "use auto, cpu, cuda, cuda:1 or mps", "sample"),
    value("labels='no red cube'", "'no red cube': ", "sample"),
    value("evaluator.checkpoint=gone.pth", "there is no file gone.pth"),
    override(
        "callbacks=posthoc_ema",
        line="callbacks.scoring needs a command that scores images; set callbacks.scoring=null",
        command="train_evaluator",
    ),
    value("train_on=nothing", "train_on must be one of", "train_evaluator"),
    value("train_on=both", "train_on=both needs the course's frames", "train_evaluator"),
    value("data.batch_size=9999", "do not fill one batch", "train_evaluator"),
    value("optimizer=muon", "optimizer=muon needs a network with inner_weights", "train_evaluator"),
    value("net.widths=[4]", "net.widths must be 3 numbers", "train_evaluator"),
    value("net.hidden=0", "net.hidden must be in 1..8192, got 0", "train_evaluator"),
    value("net.kind=resnet", "net.kind must be one of residual, attention", "train_evaluator"),
    value(
        "net.kind=attention",
        "net.kind=attention has no outputs for unclear shapes; set unclear=false",
        "train_evaluator",
    ),
    value("net.unclear=maybe", "net.unclear must be true or false", "train_evaluator"),
    value("data.unclear.corrupted=0", "data.unclear.corrupted must be in 1..", "train_evaluator"),
    value("data.unclear.sequences=0", "data.unclear.sequences must be in 1..", "train_evaluator"),
    value("data.unclear.images=gone", "no .webp file there", "train_evaluator"),
    value("callbacks.ema.decay=2", "ema.decay must be in [0, 1)", "train_evaluator"),
    value("n=0", "n must be in 1..1024, got 0", "sample"),
    value("n=many", "n must be a whole number, got 'many'", "sample"),
    value("seed=abc", "seed must be a whole number, got 'abc'", "sample"),
    value("strip=maybe", "strip must be true or false, got 'maybe'", "sample"),
    value("sampler.steps=0", "sampler.steps must be a whole number of at least 1", "sample"),
    value("guidance.scale=-1", "guidance.scale must be 0 or more", "sample"),
    value(
        "guidance.scale=inf", "guidance.scale must be a finite number or null, got inf", "sample"
    ),
    value("guidance.min_noise=-1", "guidance.min_noise must be 0 or more", "sample"),
    value("guidance.max_noise=0", "guidance.max_noise must be above min_noise", "sample"),
    value("guidance.rescale=nan", "guidance.rescale must be", "sample"),
    value("sampler.spacing=even", "sampler.spacing must be one of trailing, karras", "sample"),
    value("guidance.mode=sum", "guidance.mode must be one of joint, composed; got 'sum'", "sample"),
    value("labels='not red cube'", "labels with 'not' need guidance.mode=composed", "sample"),
    value("layout=dense", "layout must be one of clear, data; got 'dense'", "sample"),
    value("layout=data", "layout=data: these weights take no positions", "sample"),
    value("positions=[[0,0]]", "positions: these weights take no positions", "sample"),
    value("positions=[]", "positions: 1 labels need as many pairs [x, y], got 0", "sample"),
    value("positions=[[0,0],[0,1]]", "1 labels need as many pairs [x, y], got 2", "sample"),
    value("positions=[[0,0,0]]", "red cube needs two numbers, [x, y]; got [", "sample"),
    value("positions=[0,0]", "positions must be a list of pairs of finite numbers", "sample"),
    value("positions=[[0,left]]", "positions must be a list of pairs of finite", "sample"),
    value("positions=[[0,nan]]", "positions must be a list of pairs of finite", "sample"),
    value("positions=[[0,1.5]]", "red cube must be in [-1, 1], got [0, 1.5]", "sample"),
    override(
        "positions=[[0,0]]",
        "layout=data",
        line="layout=data chooses positions, which are given",
        command="sample",
    ),
    value("device=toaster", "device=toaster", "sample"),
    value("out=mine.json", "out=mine.json: cannot write there: file exists", "sample"),
    value("out=mine.json/out", "out=mine.json/out: cannot write there: not a dir", "sample"),
    Case(
        "config value",
        "sample out=drawn, with a grid.png in it",
        "drawn: grid.png already exists and is not overwritten; name another folder",
        "sample",
        ("out=drawn",),
        both(lambda folder: (folder / "drawn").mkdir(), write("drawn/grid.png", "mine")),
    ),
    value("out=/proc/x", "out=/proc/x: cannot write there", "sample"),
    value("paths.outputs=mine.json", "mine.json/sample: cannot write there", "sample"),
    value("guidance.mode=[joint,joint]", "names a value twice", "evaluate"),
    value("guidance.mode=[joint,sum]", "guidance.mode must be one of joint, composed", "evaluate"),
    value("layout=dense", "layout must be one of clear, data; got 'dense'", "evaluate"),
    value("layout=data", "layout=data: these weights take no positions", "evaluate"),
    value("seeds=0", "seeds must be in 1..1000000, got 0", "evaluate"),
    value("reference_frames=-1", "reference_frames must be in 0..1000000, got -1", "evaluate"),
    value("wandb_run=true", "weights has no W&B run; one begins with train", "evaluate"),
    value("wandb_run=gone", "wandb_run=gone: gone has no W&B run", "evaluate"),
    override("run", "wandb_run=true", line="run has no W&B run", command="report"),
    value("fidelity=maybe", "fidelity must be auto, true or false", "evaluate"),
    value("sampler.steps=[]", "guidance.scale needs a value", "evaluate"),
    value("sampler.steps=[5,5]", "names a value twice", "evaluate"),
    value("sampler.steps=[2,500]", "sampler.steps=500 is more than", "evaluate"),
    value("sampler.steps=[2,x]", "sampler.steps must be a whole number, a list of", "evaluate"),
    value("guidance.scale=[1,nan]", "guidance.scale must be a finite number, a list", "evaluate"),
    value("lists=[]", "lists is empty", "evaluate"),
    value("lists=[test,test]", "test is named twice", "evaluate"),
    value("lists=[nothing]", "nothing is neither a file nor one of test", "evaluate"),
    value("lists=[held_out]", "held_out needs weights trained with data/holdout=…", "evaluate"),
    value("lists=[seen]", "seen needs weights trained with data/holdout=…", "evaluate"),
    value("evaluator.checkpoint=gone.safetensors", "no file gone.safetensors", "evaluate"),
    value("out=mine.json", "out=mine.json already exists; name a new folder", "evaluate"),
    value("out=mine.json/out", "out=mine.json/out: cannot write there: not a dir", "evaluate"),
    value("ema_length=2", "ema_length must be between 0.005 and 0.28, got 2", "evaluate"),
    value("ema_length=[.05,.05]", "no snapshots there; train with callbacks=posth", "evaluate"),
    value("ema_length=[]", "guidance.scale needs a value", "evaluate"),
    value("ema_length=0", "ema_length must be between 0.005 and 0.28, got 0", "export"),
    value("ema_length=.05", "no snapshots there; train with callbacks=posthoc_ema", "export"),
    value("course=maybe", "course must be true or false", "evaluate"),
    Case(
        "config value",
        "evaluate course=true, several settings",
        "course=true reports one setting: give one value each to ema_length,",
        "evaluate",
        ("course=true", "sampler.steps=[1,2]"),
    ),
    given("missing", "given/mine: no such file or directory; expected 2", lambda f: None),
    given("a file", "given/mine: not a directory", write("given", "")),
    given("none", "given/mine: 0.png and 1 more missing; expected 2 images, 0.png", images()),
    given("one missing", "given/mine: 1.png missing; expected 2 images", images("0.png")),
    given("counted from one", "mine/2.png is one too many; expected 2", images("1.png", "2.png")),
    given("another name", "mine/grid.png is not a number", images("0.png", "grid.png")),
    given("a number twice", "1.png and 01.png have the same", images("0.png", "1.png", "01.png")),
    given(
        "not an image",
        "given/mine/1.png: not a PNG or JPEG image",
        both(images("0.png", "1.png"), write("given/mine/1.png", "text")),
    ),
    given(
        "cut",
        "given/mine/1.png: damaged or truncated image",
        both(
            images("0.png", "1.png"),
            lambda folder: os.truncate(folder / "given" / "mine" / "1.png", 60),
        ),
    ),
    given("not square", "0.png is 64x48 pixels", images("0.png", "1.png", size=(64, 48))),
    given("too small", "0.png is 8x8 pixels; images", images("0.png", "1.png", size=(8, 8))),
    given(
        "of two sizes",
        "1.png is 32x32 pixels, 0.png 16x16; the images of a list need one size",
        both(
            images("0.png", "1.png"),
            lambda folder: Image.new("RGB", (32, 32)).save(folder / "given" / "mine" / "1.png"),
        ),
    ),
    given(
        "and weights",
        "images=… are scored as they are: leave weights out",
        images("0.png", "1.png"),
        "weights=weights",
    ),
    given(
        "and a sampler",
        "images=… are scored as they are: leave sampler.steps out",
        images("0.png", "1.png"),
        "sampler.steps=5",
    ),
    Case(
        "config value",
        "evaluate out=taken",
        "taken already exists",
        "evaluate",
        ("out=taken",),
        taken,
    ),
    override("nonsense=1", line="there is no setting 'nonsense'"),
    override("net.nonsense=1", line="there is no setting 'net.nonsense'"),
    override("net=uvit", "net.width=100", line="net.width=100 must be a multiple of head_dim=32"),
    override("net=uvit", "net.blocks=[1]", line="net.channels has 2 levels, blocks 1"),
    override("net=uvit", "net.positions=maybe", line="net.positions must be true or false"),
    detail("net.positions=false", line="DetailNet alone cannot be trained without positions"),
    override("net=uvit", "net.object_tokens=0", line="net.object_tokens must be a whole number"),
    override("+net.nonsense=1", line="net.nonsense: there is no such setting"),
    override(
        "experiment=quickstart",
        "net=tiny",
        line="(experiment=quickstart sets it for its own net; ~net.headings removes it)",
    ),
    override("~seed", line="seed is needed: write seed=…"),
    override("experiment=nonsense", line="there is no such experiment"),
    override("net=huge", line="there is no such net"),
    override("seed=1,2", line="seed=1,2: several values need -m"),
    override("seed", line="seed"),
    override("data.root='${nope}'", line="Interpolation key 'nope' not found"),
    override(
        "name=[unclosed",
        line="name=[unclosed: this value cannot be read; quote it: name=\"'…'\"",
    ),
    override("name=odd (1)", line="name=odd (1): this value cannot be read; quote it"),
    override("--config-name=gone", line="--config-name=gone: there is no such config"),
    override("experiment=cosin_eps", line="did you mean cosine_eps?"),
    override("schedule=cosine", line="did you mean squaredcos_cap_v2?"),
    override("netz=uvit", line="there is no setting 'netz'; did you mean net?"),
    override("trainer.max_epoch=3", line="did you mean trainer.max_epochs?"),
    override("optimizer.learning_rate=1e-3", line="did you mean optimizer.lr?"),
    override("sampler.stpes=5", line="did you mean sampler.steps?", command="sample"),
    override("~x", line="there is no setting 'x'"),
    override("experiment=3", line="choose an option by its name"),
    override("--experiment=flow", line="no flag --experiment; did you mean experiment or"),
    override("--batch-size", "4", line="no flag --batch-size; did you mean data.batch_size"),
    override("--multi", "seed=0,1", line="no flag --multi; did you mean --multirun?"),
    override("--experimental-rerun=x", line="there is no flag --experimental-rerun"),
    override("--shell-completion", line="Expecting one subcommand from ['install', 'uninstall'"),
    override("--package=trainer", line="--package is for --cfg: --cfg job --package trainer"),
    override("--multirn", line="there is no flag --multirn; did you mean --multirun?"),
    override("-m", "seed=0,1", "trainer.devices=2", line="a sweep over several"),
    override("-m", "seed=a,b", line="seed must be a whole number"),
    override("-m", "n=1,2", line="no -m; run it once for each value", command="sample"),
    override("-m", "seeds=1,2", line="no -m; give it lists, such as", command="evaluate"),
    override(line="name the folders to compare", command="report"),
    override("gone", line="gone: there is no such folder", command="report"),
    override("run", "mine.json", line="mine.json: there is no such folder", command="report"),
    override("weights", line="weights: no run in that folder, nor below it", command="report"),
    override("run", "--nonsense", line="unrecognized arguments: --nonsense", command="report"),
    override("run", "titel=a", line="no setting titel; did you mean title?", command="report"),
    override("run", "title=a", "title=b", line="title is named twice", command="report"),
    override("run", "out=mine.json", line="out=mine.json: cannot write there", command="report"),
    override("run", "out=mine.json/out", line="cannot write there: not a dir", command="report"),
    override("run", "out=", line="out is empty", command="report"),
    override("run", "out=run", line="out=run is the folder of a run; name", command="report"),
    override("out=run", line="out=run is the folder of a run; name another", command="sample"),
    Case("export", "into a run", "out=run is the folder of a run", "export", ("out=run",)),
    override("out=run/images", line="out=run/images is in the folder of a run", command="sample"),
    override("out=run/a/b", line="out=run/a/b is in the folder of a run", command="export"),
    override("run", "out=run/report", line="is in the folder of a run; name", command="report"),
    override("out=run/x", line="name another, or evaluation in it", command="evaluate"),
    weights("missing", "weights=gone: no weights there", arguments=("weights=gone",)),
    weights("named as ???", "weights is needed: write weights=…", arguments=("weights=???",)),
    weights("an empty folder", "no weights there", instead("weights", Path.mkdir)),
    weights("an empty file", "model.ckpt is damaged", write("model.ckpt", ""), CKPT),
    weights("a text", "model.ckpt is damaged", write("model.ckpt", "weights"), CKPT),
    weights("a cut checkpoint", "is damaged", rewrite("model.ckpt", lambda c: c[:5000]), CKPT),
    weights("a checkpoint with code", "model.ckpt is damaged", payload("model.ckpt"), CKPT),
    weights("a pickle with code", "model.ckpt is damaged", raw_pickle("model.ckpt"), CKPT),
    weights(
        "a checkpoint of an absurd net",
        "block_out_channels: each must be a whole number in 1..8192",
        checkpoint_with("model.ckpt", net={"block_out_channels": [8, 10_000_000]}),
        CKPT,
    ),
    weights(
        "a checkpoint with auto_map",
        "unexpected keyword argument 'auto_map'",
        checkpoint_with("model.ckpt", net={"auto_map": {"a": "b.C"}}),
        CKPT,
    ),
    weights(
        "cut tensors",
        "cannot read weights: Error while deserializing",
        rewrite(TENSORS, lambda content: content[:1000]),
    ),
    weights("tensors missing", "cannot read weights: ", without(TENSORS)),
    weights(
        "a pickle beside the tensors' position",
        "cannot read weights: ",
        both(without(TENSORS), raw_pickle("weights/unet/diffusion_pytorch_model.bin")),
    ),
    weights("NaN", "the weights contain NaN or infinite", weights_with(spoil_values, TENSORS)),
    weights("a tensor missing", "do not match", weights_with(lambda s: s.popitem(), TENSORS)),
    weights(
        "a net of 10 million channels",
        "each must be",
        change_json(UNET, block_out_channels=[8, 10**7]),
    ),
    weights(
        "a net larger than its tensors",
        "do not match",
        change_json(UNET, block_out_channels=[8192] * 2),
    ),
    weights("a net of 64 levels", "64 levels", change_json(UNET, block_out_channels=[8] * 64)),
    weights("a size in quotes", "image_size must be a", change_json(UNET, image_size="32")),
    weights("config.json cut", "config.json: not valid JSON", write(UNET, '{"image_size": 3')),
    weights("config.json a list", "config.json: expected a JSON object", write(UNET, "[]")),
    weights("config.json with auto_map", "auto_map", change_json(UNET, auto_map={"a": "b.C"})),
    value("port=0", "port must be in 1..65535, got 0", "app"),
    value("port=web", "port must be a whole number", "app"),
    value("host=203.0.113.7", "host=203.0.113.7 port=7860: cannot assign", "app"),
    value("limits.steps=0", "limits.steps must be in 1..10000, got 0", "app"),
    value("limits.seconds=nan", "limits.seconds", "app"),
    value("limits.images=3", "there is no setting 'limits.images'", "app"),
    value("share=please", "share must be true or false", "app"),
    Case("app", "no weights", "gone: no weights there", "app", ("weights=gone",)),
    Case(
        "app",
        "no evaluator",
        "there is no file gone",
        "app",
        ("evaluator.checkpoint=gone.safetensors",),
    ),
    Case("export", "no such format", "format must be one of", "export", ("format=pickle",)),
    override(
        "format=space", "repo=user/name", line="repo uploads weights, not a Space", command="export"
    ),
    Case("export", "no such dtype", "dtype must be one of", "export", ("dtype=int8",)),
    Case("export", "a name alone", "repo=name: write user/name", "export", ("repo=name",)),
    Case("export", "no evaluation", "gone: no such file", "export", ("evaluation=gone",)),
    Case("export", "over weights", "data.json already exists", "export", ("out=weights",)),
    Case(
        "export",
        "over weights of an earlier version",
        "data.json already exists",
        "export",
        ("out=weights",),
        without("weights/model_index.json"),
    ),
    Case(
        "export",
        "over an evaluation",
        "evaluation.json already exists",
        "export",
        ("out=there",),
        both(lambda folder: (folder / "there").mkdir(), write("there/evaluation.json", "{}")),
    ),
    Case(
        "export",
        "stored settings out of range",
        "steps must be",
        "export",
        damage=change_json("weights/sampling.json", steps=0),
    ),
    Case(
        "export",
        "weights that generate NaN",
        "NaN",
        "export",
        damage=weights_with(spoil_images, TENSORS),
    ),
    Case("export", "one name on the Hub", "write hf://user/name", "export", ("weights=hf://name",)),
    weights(
        "the address of a page on the Hub",
        "weights is the address of a web page; write weights=hf://user/name",
        arguments=("weights=https://huggingface.co/user/name/tree/main",),
    ),
    weights(
        "a revision that leaves the cache",
        "../../../x is not a revision",
        arguments=("weights=hf://user/name@../../../x",),
    ),
    weights(
        "index names a class of another module",
        "unet names code outside these weights: ['os', 'system']",
        change_json("weights/model_index.json", unet=["os", "system"]),
    ),
    weights(
        "index names a pipeline in a file",
        "_class_name must be ICLEVRPipeline, got ['my_pipeline', 'Evil']",
        change_json("weights/model_index.json", _class_name=["my_pipeline", "Evil"]),
    ),
    weights("no scheduler", "scheduler_config.json: no such file", without("weights/scheduler")),
    weights("10^12 timesteps", "1..100000", change_json(SCHEDULER, num_train_timesteps=10**12)),
    weights("a beta of NaN", "beta_start must be", change_json(SCHEDULER, beta_start=float("nan"))),
    weights("no such schedule", "schedule named 'x'", change_json(SCHEDULER, beta_schedule="x")),
    weights(
        "no such prediction",
        "prediction 'x' is unknown",
        change_json(SCHEDULER, prediction_type="x"),
    ),
    weights("a key missing", "'beta_end' is missing", change_json(SCHEDULER, beta_end=None)),
    weights(
        "'many' steps",
        "invalid steps: 'many'",
        change_json("weights/sampling.json", steps="many"),
    ),
    weights(
        "no such sampler", "sampler.name must be", change_json("weights/sampling.json", sampler="x")
    ),
    weights(
        "trained on a list",
        "data.json: expected a JSON",
        write("weights/data.json", "[1]"),
        command="evaluate",
    ),
    weights(
        "trained on 10^9 sequences",
        "sequences must be in 1..1000000",
        change_json("weights/data.json", sequences=10**9),
        command="evaluate",
    ),
    weights(
        "never trained without labels",
        "needs weights that were trained with dropped labels",
        change_json("weights/sampling.json", label_drop=0),
        ("guidance.scale=2",),
    ),
    weights(
        "composed, and never trained without labels",
        "guidance.mode=composed needs weights that were trained with dropped labels",
        change_json("weights/sampling.json", label_drop=0),
        ("guidance.mode=composed",),
    ),
    weights(
        "an unknown mode of guidance",
        "mode must be one of joint, composed; got 'sum'",
        change_json("weights/sampling.json", guidance_mode="sum"),
    ),
    weights(
        "a split of unknown labels",
        "unknown label 'red cub'",
        write(
            "weights/holdout.json",
            '{"settings": {}, "lists": {"held_out": [], "seen": [["red cub"]]}}',
        ),
    ),
    weights(
        "a split that is a list",
        "holdout.json: the content must be an object, got list",
        write("weights/holdout.json", "[]"),
    ),
    weights(
        "evaluator a text", "is not an evaluator", write("evaluator.safetensors", "x"), OWN, "train"
    ),
    weights("evaluator of NaN", "contain NaN or infinite", evaluator_of_nan, OWN, "evaluate"),
    weights(
        "evaluator with absurd widths",
        "widths must be 3 numbers in 1..8192, got [24, 48, 10000000]",
        evaluator_that_says(
            '{"kind": "residual", "widths": [24, 48, 10000000], "hidden": 256, "unclear": true}'
        ),
        OWN,
        "evaluate",
    ),
    weights(
        "evaluator a pickle with code",
        "is not the course's evaluator",
        raw_pickle("checkpoint.pth"),
        ("evaluator.checkpoint=checkpoint.pth",),
        "evaluate",
    ),
    weights(
        "a cut checkpoint to resume",
        "last.ckpt is damaged",
        rewrite("run/checkpoints/last.ckpt", lambda content: content[:5000]),
        RESUME,
        "train",
    ),
    weights(
        "a checkpoint with code to resume",
        "last.ckpt is damaged",
        payload("run/checkpoints/last.ckpt"),
        RESUME,
        "train",
    ),
    weights("another net to resume", "was trained with net", arguments=RESUME, command="train"),
    conditions("empty", "mine.json: the file is empty", ""),
    conditions("an empty list", "mine.json: the list is empty", "[]"),
    conditions("cut", "mine.json: not valid JSON", '[["red cube"'),
    conditions("not JSON", "mine.json: not valid JSON: Expecting value", "red cube, blue sphere"),
    conditions("not UTF-8", "mine.json: not UTF-8 text (byte 3)", b'[["\xe9"]]'),
    conditions("of 100,000 brackets", "mine.json: not valid JSON", DEEP),
    conditions("an object", "expected a list of lists", '{"test": [["red cube"]]}'),
    conditions("a flat list", "entry 1: expected a list of labels", '["red cube"]'),
    conditions("an entry of numbers", "entry 2: expected a list", '[["red cube"], [1, 2]]'),
    conditions("an empty entry", "mine.json: entry 2: no label given", '[["red cube"], []]'),
    conditions("an unknown label", "entry 1: unknown label 'pink cube'", '[["pink cube"]]'),
    conditions("a label twice", "entry 1: label given twice", '[["red cube", "red cube"]]'),
    Case("conditions file", "missing", "gone.json is neither", "evaluate", ("lists=[gone.json]",)),
    Case("conditions file", "a folder", "data is neither a file", "evaluate", ("lists=[data]",)),
    Case(
        "conditions file",
        "unseen by nothing",
        "needs",
        "evaluate",
        ("lists=[unseen]",),
        without("weights/data.json"),
    ),
]
