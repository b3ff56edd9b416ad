"""`export`, and weights on the Hub, against a server of our own."""

import dataclasses
import json
import logging
import shutil

import pytest
import torch
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from safetensors.torch import load_file

from hub_server import COMMIT, TOKEN, hub_server
from iclevr_diffusion import ICLEVRPipeline, export, sample
from iclevr_diffusion.cli.export_wiring import training_facts
from iclevr_diffusion.data.holdout import Split
from iclevr_diffusion.diffusion.hub import hub_name, push
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.diffusion.run_summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.diffusion.weights_path import find_weights, weights_sum
from iclevr_diffusion.evaluation.results import Evaluation, ListResult, SettingResult
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.statistics import summarize
from iclevr_diffusion.utils.typed_json import write_dataclass

TENSORS = "unet/diffusion_pytorch_model.safetensors"


def point_to(monkeypatch, url):
    """As HF_ENDPOINT does before huggingface_hub is imported."""
    constants = "huggingface_hub.constants"
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(f"{constants}.ENDPOINT", url)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with nobody logged in, and an empty cache."""
    constants = "huggingface_hub.constants"
    with hub_server() as hub:
        point_to(monkeypatch, hub.url)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def evaluation_of(weights, path):
    accuracy = {"accuracy": summarize([0.75, 0.8125], 0, 1)}
    setting = SettingResult("ddim 2", "ddim", 2, 1.0, 2, {"test": ListResult(32, accuracy)})
    checksum = weights_sum(weights)
    content = Evaluation("x", "ours", {"test": "x"}, 2, [setting], weights_sha256=checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dataclass(path, content)


def test_an_exported_folder_has_the_weights_and_a_card_with_their_figures(
    run, weights_folder, tmp_path
):
    shutil.copytree(weights_folder, tmp_path / "run" / "weights")
    evaluation_of(weights_folder, tmp_path / "run" / "evaluation" / "evaluation.json")
    code, out, err = run(export, "weights=run", "out=there", "license=mit")
    assert (code, err) == (0, "")
    there = tmp_path / "there"
    assert {*out.split()} == {
        f"there/{path.relative_to(there)}" for path in there.rglob("*") if path.is_file()
    }
    assert weights_sum(there) == weights_sum(weights_folder)
    card = (there / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: diffusers\ntags: [")
    assert "| test | ddim 2 | 1 | 2 | 32 | 0.7812 ± 0.0442" in card
    assert "![samples](samples.png)" in card
    assert run(sample, "weights=there", "labels=red cube", "n=1")[0] == 0


def test_float16_is_half_as_large_and_the_evaluation_given_must_be_of_the_weights(
    run, weights_folder, tmp_path
):
    assert run(export, f"weights={weights_folder}", "out=half", "dtype=float16")[0] == 0
    state = load_file(tmp_path / "half" / TENSORS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    run(export, "weights=half", "out=again")
    assert weights_sum(tmp_path / "again") == weights_sum(tmp_path / "half")
    assert "Not measured." in (tmp_path / "again" / "README.md").read_text()
    evaluation_of(weights_folder, tmp_path / "evaluation.json")
    code, _, err = run(export, "weights=half", "out=new", "evaluation=evaluation.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "an evaluation of other weights" in err
    assert not (tmp_path / "new").exists()


def test_a_card_says_which_weights_were_measured_if_these_were_converted(
    run, weights_folder, tmp_path
):
    shutil.copytree(weights_folder, tmp_path / "run" / "weights")
    evaluation_of(weights_folder, tmp_path / "run" / "evaluation.json")
    assert run(export, "weights=run", "out=half", "dtype=float16")[0] == 0
    card = (tmp_path / "half" / "README.md").read_text()
    assert "These figures are of `run/weights`, stored in float32." in card
    assert "are stored in float16; they were not measured themselves." in card
    assert not (tmp_path / "half" / "evaluation.json").exists()


def test_a_card_describes_a_run_only_if_the_weights_are_its_own(weights_folder, tmp_path):
    shutil.copytree(weights_folder, tmp_path / "weights")
    model, own = load_model(weights_folder), weights_sum(weights_folder)
    for checksum, expected in ((own, "mine, seed 0"), ("another", None)):
        published = PublishedWeights({}, sha256=checksum)
        summary = Summary("mine", 0, "x", 1, 1, 1, {}, "ours", Machine("cpu"), published)
        write_dataclass(tmp_path / "summary.json", summary)
        assert training_facts(model, tmp_path / "weights").get("run") == expected


def test_weights_of_the_hub_are_downloaded_once_and_then_read_offline(
    run, hub, weights_folder, monkeypatch, caplog
):
    hub.add("user/name", weights_folder, **{"README.md": b"#", "evil.py": b"1/0"})
    code, out, err = run(sample, "weights=hf://user/name", "labels=red cube", "n=1")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    asked = [request.split("/resolve/")[1] for request in hub.requests if "/resolve/" in request]
    assert {name.split("/", 1)[1] for name in asked} == {
        path.relative_to(weights_folder).as_posix()
        for path in weights_folder.rglob("*")
        if path.is_file()
    }
    hub.requests.clear()
    for pinned in (COMMIT, "main"):
        folder = find_weights(f"hf://user/name@{pinned}")
        assert hub_name(folder) == f"hf://user/name@{COMMIT}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert str(load_model("hf://user/name").pipeline()) == str(load_model(folder).pipeline())
    assert hub.requests == []
    assert "cached revision" not in caplog.text


def test_weights_of_the_hub_keep_the_held_out_label_sets(hub, weights_folder, tmp_path):
    split = Split({"kind": "pairs"}, {"held_out": [["red cube", "blue sphere"]], "seen": []})
    model = dataclasses.replace(load_model(weights_folder), split=split)
    hub.add("user/name", save_model(model, tmp_path / "weights"))
    assert load_model("hf://user/name").split == split


def test_where_the_hub_is_down_the_cache_is_used_with_a_warning(
    hub, weights_folder, monkeypatch, caplog
):
    hub.add("user/name", weights_folder)
    folder = find_weights("hf://user/name")
    point_to(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert find_weights("hf://user/name") == folder
    assert "using the cached revision, 0123456789ab" in caplog.text


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ("hf://user/gone", "no such repository, or it is private and you are not logged in"),
        ("hf://user/name@v9", "no such revision"),
        ("hf://user/pickle", r"its weights are pickles \(pytorch_model.bin\), which can run code"),
        ("hf://user/other", "has no weights of this project"),
        ("hf://user/hostile", "names code outside these weights"),
    ],
)
def test_what_cannot_be_loaded_from_the_hub_is_refused_in_one_line(
    run, hub, weights_folder, weights, line
):
    hub.add("user/name", weights_folder)
    config = (weights_folder / "unet" / "config.json").read_bytes()
    hub.repos["user/pickle"] = {"unet/config.json": config, "pytorch_model.bin": b"\x80"}
    hub.repos["user/other"] = {"config.json": b"{}", "model.safetensors": b""}
    index = json.loads((weights_folder / "model_index.json").read_bytes())
    hostile = json.dumps(index | {"unet": ["os", "system"]}).encode()
    hub.add("user/hostile", weights_folder, **{"model_index.json": hostile})
    code, _, err = run(sample, f"weights={weights}", "labels=red cube", "n=1")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: weights=hf://")
    with pytest.raises(UserError, match=line):
        load_model(weights)
    assert not [request for request in hub.requests if request.endswith((".bin", ".py"))]


def test_a_broken_download_is_refused_and_can_be_repeated(run, hub, weights_folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("user/name", weights_folder)
    hub.cut = True
    code, _, err = run(sample, "weights=hf://user/name", "labels=red cube", "n=1")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: weights=hf://user/name: the download failed: ")
    with pytest.raises(UserError, match="the download failed"):
        find_weights("hf://user/name@main")
    hub.cut = False
    assert weights_sum(find_weights("hf://user/name")) == weights_sum(weights_folder)


def test_a_broken_update_leaves_the_earlier_revision_for_use_offline(
    hub, weights_folder, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("user/name", weights_folder)
    folder = find_weights("hf://user/name")
    hub.commit = COMMIT[::-1]
    hub.repos["user/name"][TENSORS] += b"newer"
    hub.cut = True
    assert find_weights("hf://user/name") == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_weights("hf://user/name") == folder


def test_the_choice_of_progress_bars_is_left_as_it_was(hub, weights_folder):
    hub.add("user/name", weights_folder)
    find_weights("hf://user/name")
    assert not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        find_weights("hf://user/name")
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()


def test_a_download_leaves_the_level_of_other_loggers(hub, weights_folder, monkeypatch):
    monkeypatch.setattr(logging.getLogger("httpx"), "level", logging.INFO)
    hub.add("user/name", weights_folder)
    find_weights("hf://user/name")
    assert logging.getLogger("httpx").level == logging.INFO


def test_an_upload_that_fails_is_not_called_a_download(hub, weights_folder, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="repo=user/new: the upload failed: "):
        push(weights_folder, ["data.json"], "user/new", False)


def test_push_to_hub_of_diffusers_uploads_the_weights(hub, weights_folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)  # that of its functions
    ICLEVRPipeline.from_pretrained(weights_folder).push_to_hub("user/new")
    assert weights_sum(find_weights("hf://user/new")) == weights_sum(weights_folder)


@pytest.mark.slow
def test_an_upload_needs_a_login_and_its_weights_can_be_sampled(
    run, hub, weights_folder, monkeypatch, tmp_path
):
    arguments = (f"weights={weights_folder}", "out=mine", "repo=user/new")
    code, _, err = run(export, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "repo=user/new: you are not logged in: run hf auth login, or set HF_TOKEN" in err
    assert not (tmp_path / "mine").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "private.txt").write_text("not to be uploaded")
    hub.repos["user/new"] = {"labels.json": b"[]", "generator/config.json": b"{}", "notes": b"mine"}
    code, out, err = run(export, *arguments)
    assert (err, code) == ("", 0)
    assert out.splitlines()[-1] == f"{hub.url}/user/new"
    assert hub.repos["user/new"].pop("notes") == b"mine"
    assert {*hub.repos["user/new"]} == {
        path.relative_to(tmp_path / "mine").as_posix()
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file() and path.name != "private.txt"
    }
    assert b'from_pretrained("hf://user/new")' in hub.repos["user/new"]["README.md"]
    assert weights_sum(find_weights("hf://user/new")) == weights_sum(weights_folder)
