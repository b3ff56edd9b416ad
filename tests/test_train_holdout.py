"""Held-out compositions through the commands: train, resume, evaluate."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers import SMALL_RUN, folders
from iclevr_diffusion import evaluate, train
from iclevr_diffusion.data.holdout import HeldOutSets
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.diffusion.io import load_model, save_model
from iclevr_diffusion.utils.errors import UserError

PAIRS = (*SMALL_RUN, "data.sequences=24", "data/holdout=pairs", "trainer.max_steps=1")


@pytest.mark.slow
def test_a_split_is_printed_kept_by_the_weights_evaluated_and_not_changed_on_resume(run):
    code, out, err = run(train, *PAIRS)
    assert code == 0, err
    assert out.startswith("held out: 55 of 276 pairs, seed 0; ")
    assert "held_out 0." in out
    (folder,) = folders("run")
    split = load_model(folder).split
    assert split.settings == {"kind": "pairs", "fraction": 0.2, "seed": 0}
    held_out = HeldOutSets(2, 0.2).sets(ICLEVR_LABELS)
    assert [tuple(names) for names in split.lists["held_out"]] == held_out

    code, _, err = run(
        evaluate, f"weights={folder}", "lists=[held_out,seen]", "seeds=1", "reference_frames=0",
        "sampler.steps=1", "out=out",
    )  # fmt: skip
    assert code == 0, err
    evaluation = json.loads(Path("out/evaluation.json").read_text())
    assert evaluation["settings"][0]["lists"]["held_out"]["conditions"] == len(held_out)
    assert evaluation["lists"]["seen"].startswith("sets that the training frames show, kind pairs")

    for changes, line in (
        (("data.holdout.fraction=0.1",), "data.holdout.fraction=0.2, not 0.1"),
        (("data.holdout.seed=1",), "data.holdout.seed=0, not 1"),
        (("data/holdout=none",), "data.holdout.kind=pairs, not null"),
    ):
        code, _, err = run(train, *PAIRS, *changes, "resume=true")
        assert code == 2
        assert f"was trained with {line}; leave it as it was" in err


def test_weights_that_are_saved_again_keep_their_split(weights_folder, tmp_path):
    split = HeldOutSets(3, 0.01).split(ICLEVR_LABELS.encode_all([("red cube",)]), ICLEVR_LABELS)
    model = dataclasses.replace(load_model(weights_folder), split=split)
    assert load_model(save_model(model, tmp_path / "weights")).split == split
    assert load_model(weights_folder).split is None


def test_unseen_is_refused_for_weights_whose_training_left_out_frames(
    run, weights_folder, tmp_path
):
    split = HeldOutSets(3, 0.01).split(ICLEVR_LABELS.encode_all([("red cube",)]), ICLEVR_LABELS)
    model = dataclasses.replace(load_model(weights_folder), split=split)
    save_model(model, tmp_path / "weights")
    code, _, err = run(evaluate, "weights=weights", "lists=[unseen]", "data=synthetic")
    assert code == 2
    assert "unseen is not available for weights trained with data.holdout" in err


@pytest.mark.slow
def test_a_checkpoint_without_a_split_is_not_resumed_with_one(run):
    assert run(train, *SMALL_RUN, "data.sequences=24", "trainer.max_steps=1")[0] == 0
    code, _, err = run(train, *PAIRS, "resume=true")
    assert code == 2
    assert "data.holdout.kind=null, not pairs" in err


@pytest.mark.parametrize(
    "lists",
    [
        {"held_out": [], "seen": [], "test": [["red cube"]]},
        {"held_out": [["pink cube"]], "seen": []},
    ],
)
def test_weights_with_other_lists_or_labels_are_refused(weights_folder, tmp_path, lists):
    folder = save_model(load_model(weights_folder), tmp_path / "weights")
    (folder / "holdout.json").write_text(json.dumps({"settings": {}, "lists": lists}))
    with pytest.raises(UserError, match=r"lists must be held_out and seen|pink cube"):
        load_model(folder)
