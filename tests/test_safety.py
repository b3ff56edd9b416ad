"""No stranger's code runs, no name leaves its folder, nothing absurd is built, no key leaks."""

import importlib
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bad_input_cases import (
    DEEP,
    FRAME,
    SCHEDULER,
    SMALL,
    TRAIN,
    UNET,
    Payload,
    change_json,
    checkpoint_with,
    good_folder,
    noise,
    payload,
    png,
    raw_pickle,
    train_json,
    write_json,
)
from iclevr_diffusion import train
from iclevr_diffusion.data.conditions import read_conditions
from iclevr_diffusion.data.iclevr.dataset import ICLEVR
from iclevr_diffusion.data.iclevr.decode import MAX_BYTES, BadFrameError, decode_frame
from iclevr_diffusion.data.synthetic.dataset import Synthetic
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.run_checkpoint import read_checkpoint
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.unet import ConditionalUNet
from iclevr_diffusion.utils.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The good folder of the cases of bad input, and the working folder."""
    good_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_ran() -> bool:
    return Path("ran").exists()


def test_payload_does_run_where_nobody_refuses_it(folder):
    """Otherwise the tests below would prove nothing."""
    payload("model.ckpt")(folder)
    torch.load("model.ckpt", weights_only=False)
    assert code_ran()


@pytest.mark.parametrize("damage", [payload, raw_pickle])
@pytest.mark.parametrize("load", [load_model, lambda name: read_checkpoint(Path(name))])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(damage, load, folder):
    damage("model.ckpt")(folder)
    with pytest.raises(UserError, match=r"model\.ckpt is damaged, or not a checkpoint"):
        load("model.ckpt")
    assert not code_ran()


def test_pickle_in_a_weights_folder_is_not_even_opened(folder):
    raw_pickle("weights/unet/diffusion_pytorch_model.bin")(folder)
    load_model("weights")
    (folder / "weights/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="No such file"):
        load_model("weights")
    assert not code_ran()


def test_code_in_a_cache_file_does_not_run_and_the_frames_are_rendered_again(folder):
    source = Synthetic(1, image_size=16, cache="cache")
    source.prepare_data()
    (file,) = Path("cache").iterdir()
    good = file.read_bytes()
    np.save(file, np.array([Payload()], dtype=object), allow_pickle=True)
    source.prepare_data()
    assert file.read_bytes() == good
    assert not code_ran()


def trap(name: str) -> Path:
    """A module that leaves a trace where it is imported."""
    Path(f"{name}.py").write_text("from pathlib import Path\nPath('ran').touch()\nEvil = dict\n")
    return Path(f"{name}.py")


NAMES = {
    "_target_": "trap.Evil",
    "_class_name": "trap.Evil",
    "_diffusers_version": "trap.Evil",
    "_partial_": True,
    "_args_": ["trap.Evil"],
}


@pytest.mark.parametrize("file", [UNET, SCHEDULER, "model.ckpt"])
@pytest.mark.parametrize("key", [*NAMES, "auto_map", "cls"])
def test_no_file_names_a_class_to_build(file, key, folder, monkeypatch):
    trap("trap")
    monkeypatch.syspath_prepend(str(folder))
    entry = {key: NAMES.get(key, {"AutoModel": "trap.Evil"})}
    if file == "model.ckpt":
        checkpoint_with(file, net=entry, schedule=entry)(folder)
    else:
        change_json(file, **entry)(folder)
    try:
        model = load_model("model.ckpt" if file == "model.ckpt" else "weights")
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert type(model.net) is ConditionalUNet
        assert type(model.schedule) is NoiseSchedule
    lines = (f"unexpected keyword argument '{key}'", "'trap.Evil' is unknown here")
    assert not refusal or any(line in refusal for line in lines)
    assert "trap" not in sys.modules
    assert not code_ran()
    importlib.import_module("trap")  # it could have been imported
    assert code_ran()
    sys.modules.pop("trap")


# File names in train.json. A link within iclevr/ that leads out of it is another matter: who can
# put one there can put the file there as well (test_iclevr.py has a test that it is followed).

OUTSIDE = "outside.png"


@pytest.mark.parametrize(
    "name",
    [
        f"../{OUTSIDE}",
        f"../../{OUTSIDE}",
        f"./../{OUTSIDE}",
        f"x/../../{OUTSIDE}",
        f"..\\{OUTSIDE}",
        f"C:\\{OUTSIDE}",
        f"\\\\host\\{OUTSIDE}",
        f"/{OUTSIDE}",
        f"{OUTSIDE}\0.png",
        "..",
        ".",
        "",
    ],
)
def test_no_name_in_train_json_leaves_the_folder(name, folder):
    for place in (folder, folder / "data"):
        Image.fromarray(noise(1)).save(place / OUTSIDE)
    train_json(name, ["red cube"])(folder)
    for method in ("sequences", "prepare_data", "load_frames"):
        with pytest.raises(UserError, match="not a plain name in iclevr/: 1 "):
            getattr(ICLEVR("data", 32, "cache"), method)()
    assert not Path("cache").exists()


def test_check_writes_nothing_and_prepare_calls_for_the_same(folder):
    ICLEVR("data", 32, "cache").sequences()
    assert not Path("cache").exists()
    write_json(folder / "data" / "train.json", TRAIN | {"gone.png": ["red cube"]})
    with pytest.raises(UserError, match=r"gone\.png"):
        ICLEVR("data", 32, "cache").sequences()
    assert not Path("cache").exists()


# Bombs.


def image_of(rows: int, color: int) -> bytes:
    """PNG data that unpacks to far more than an image of 32 x 32 needs."""
    return b"IDAT" + zlib.compress((b"\0" + bytes([color]) * 96) * rows, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(50_000, 50_000, b"IDAT"), "larger than 4096x4096"),
        (png(2**31 - 1, 2**31 - 1, b"IDAT"), "larger than 4096x4096|damaged"),
        (png(1, 2**31 - 1, b"IDAT"), "larger than 4096x4096"),
        (png(32, 32, b"zTXta\0\0" + zlib.compress(bytes(50_000_000)), image_of(32, 9)), "damaged"),
        (png(32, 32, b"iCCPa\0\0" + zlib.compress(bytes(50_000_000)), image_of(32, 9)), "damaged"),
        (png(32, 32, image_of(500_000, 9)), ""),
    ],
    ids=["50,000 wide", "2^31 wide", "2^31 high", "text", "profile", "pixels"],
)
def test_image_bomb_is_refused_or_harmless(content, message, folder):
    path = folder / "bomb.png"
    path.write_bytes(content)
    start = time.process_time()
    if message:
        with pytest.raises(BadFrameError, match=message):
            decode_frame(path, 32)
    else:
        assert (decode_frame(path, 32) == 9).all()
    assert time.process_time() - start < 2


def test_image_file_of_gigabytes_is_not_read(folder):
    path = folder / "data" / "iclevr" / FRAME
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: it takes no room on the disk
    with pytest.raises(BadFrameError, match="file larger than 67 MB"):
        decode_frame(path, 32)


def test_json_of_gigabytes_is_not_read(folder):
    with Path("mine.json").open("r+b") as file:
        file.truncate(2 * 10**9)
    with pytest.raises(UserError, match="larger than 100 MB"):
        read_conditions("mine.json")


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "[" * 900 + "]" * 900, "9" * 5000])
def test_strange_json_is_refused_in_one_line(text, folder):
    Path("mine.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_conditions("mine.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "absurd",
    [
        {"block_out_channels": [10_000_000, 16]},
        {"block_out_channels": [8192] * 16, "attention": [False] * 16, "image_size": 1024},
        {"block_out_channels": [8] * 10_000, "attention": [False] * 10_000},
        {"layers_per_block": 10**9},
        {"image_size": 2**40},
        {"patch_size": 32},
        {"image_size": -32},
        {"image_size": 32.0},
        {"dropout": float("nan")},
        {"attention": [[], {}]},
        {"block_out_channels": "88"},
    ],
)
def test_absurd_net_is_refused_before_it_takes_memory_or_time(absurd, folder):
    change_json(UNET, **absurd)(folder)
    start = time.process_time()
    with pytest.raises(UserError, match="cannot read weights: "):
        load_model("weights")
    checkpoint_with("model.ckpt", net=absurd)(folder)
    with pytest.raises(UserError, match=r"cannot read model\.ckpt: "):
        load_model("model.ckpt")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("timesteps", [10**12, 0, -1, True, 20.0, "20", None])
def test_absurd_number_of_timesteps_is_refused(timesteps):
    with pytest.raises(ValueError, match="timesteps"):
        NoiseSchedule(timesteps=timesteps)


# Secrets.


@pytest.mark.slow
def test_no_key_is_in_the_run_folder_or_in_the_output(run, monkeypatch, tmp_path):
    key, login = "0123456789abcdef" * 3, "fedcba9876543210" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    netrc = tmp_path.parent / "netrc-of-the-user"
    netrc.write_text(f"machine api.wandb.ai login user password {login}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    code, out, err = run(train, *SMALL, "logger=wandb")
    assert code == 0, err
    (folder,) = Path("outputs/train").iterdir()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    contents = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    contents += [text.encode() for text in (out, err)]
    for secret in (key, login):
        assert not any(secret.encode() in content for content in contents)
