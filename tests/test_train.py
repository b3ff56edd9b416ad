"""The commands, run in this process on the real configs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from helpers import SMALL, exit_code, folders, slow
from iclevr_diffusion import evaluate, sample, train
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.training_wiring import build_datamodule, build_module
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.run_summary import Machine, PublishedWeights, Summary
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.training.loggers import read_metrics
from iclevr_diffusion.training.save_results import print_summary

REPOSITORY = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf" / "experiment").glob("*.yaml"))
VARIED = (  # they differ from others in one choice or number, or are trained in another test, too
    "ablation",
    "best",
    "cosine_eps",
    "cosine_eps_adam",
    "cosine_eps_concat",
    "cosine_eps_lr5e5",
    "cosine_sample",
    "cosine_v",
    "flow",
    "lab",
    "linear_eps",
    "linear_sample",
    "linear_t1200",
    "mismatch",
    "with_labels",
    "without_labels",
)
FAST = sorted({*EXPERIMENTS} - {*VARIED})
SMALL_UVIT = (
    "net.channels=[8,16]",
    "net.blocks=[1,1]",
    "net.width=32",
    "net.depth=1",
    "net.head_dim=16",
)


PACKAGED = {  # they start from the weights in the package
    "detail": "net.coarse_weights=pretrained",
    "headings": "net.weights=pretrained",
}


def small(name):
    """What makes an experiment small: the net's and the diffusion's settings where it has those."""
    if name in ("quickstart", "ablation", "from_scratch"):
        return ("net.channels=[8,16]", "net.blocks=[1,1]", "data.crop_size=16", *SMALL[1:])
    if name == "best":
        return (*SMALL_UVIT, *SMALL[1:])
    if name in PACKAGED:
        not_its = ("net=", "schedule.", "data.image_size")
        return (PACKAGED[name], *(part for part in SMALL if not part.startswith(not_its)))
    if name != "dcgan":
        return SMALL
    not_its = ("net=", "schedule.", "sampler.", "callbacks.scoring.sampler")
    shared = [setting for setting in SMALL if not setting.startswith(not_its)]
    return (*shared, "net.channels=[16,8,8]", "model.batch_sizes=[4,2]")


QUICKSTART = ("experiment=quickstart", *small("quickstart"))
GUIDED = ("guidance=cfg", "guidance.max_noise=4", "trainer.max_steps=1")


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """The outputs of quickstart after one step."""
    folder = tmp_path_factory.mktemp("one_step")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code(train, *QUICKSTART, *GUIDED) == 0
    return folder / "outputs"


@pytest.fixture
def trained(run, one_step):
    """The folder of that run, in a copy of the outputs."""
    shutil.copytree(one_step, "outputs")
    (folder,) = folders("quickstart")
    return folder


@pytest.mark.parametrize("name", [*FAST, *slow(*VARIED)])
def test_every_experiment_trains_two_steps(name, run):
    settings = ("trainer.accumulate_grad_batches=1", "logger=csv", "trainer.max_steps=2")
    code, out, err = run(train, f"experiment={name}", *small(name), *settings)
    assert code == 0, err
    (folder,) = folders(name)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["name"] == name
    assert (summary["steps"], summary["images_seen"], summary["data"]) == (2, 8, "synthetic")
    assert len(read_metrics(folder / "metrics.csv")) == 2
    assert "own evaluator" in summary["evaluator"]
    assert summary["metrics"]["score/validation/count_accuracy"] >= 0
    assert summary["weights"]["step"] == 2
    assert summary["flops_forward"] > 1e5
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    for image in ("sample_test_0000", "sample_new_test_0000", "strip", "curves"):
        assert (folder / "images" / f"{image}.png").is_file()
        assert f"{image}.png" in out
    assert (folder / "images" / "schedule.png").is_file() == (name != "dcgan")


@pytest.mark.slow
def test_a_u_vit_comes_back_from_its_weights_and_its_checkpoints(run):
    code, _, err = run(train, "experiment=best", *small("best"), "trainer.max_steps=2")
    assert code == 0, err
    (folder,) = folders("best")
    published, last = (
        load_model(folder / position) for position in ("weights", "checkpoints/last.ckpt")
    )
    assert isinstance(published.net, UViT)
    assert last.net.config["channels"] == published.net.config["channels"] == [8, 16]
    assert published.pipeline().network_calls(torch.ones(1, 24)) == 4  # two steps, guided


@pytest.mark.slow
def test_positions_are_learned_from_the_frames_and_kept_with_the_weights(run):
    settings = (*SMALL[1:], "net=uvit", *SMALL_UVIT, "trainer.max_steps=2")
    assert run(train, *settings)[0] == 0
    (folder,) = folders("train")
    for weights in (folder / "weights", folder / "checkpoints" / "last.ckpt"):
        layout = load_model(weights).net.layout
        assert layout.first.tolist() == pytest.approx([0, -0.14], abs=1e-3)
        assert layout.density.sum().item() == pytest.approx(1, abs=1e-3)
        assert layout.density.count_nonzero() < 100


@pytest.mark.parametrize("name", [*FAST, *slow(*VARIED)])
def test_every_experiment_has_a_small_copy_of_the_same_system(name):
    beside = (PACKAGED[name],) if name in PACKAGED else ()
    whole, copy = (
        compose(f"experiment={name}", *beside, *scale) for scale in ((), ("scale=small",))
    )
    for group in ("schedule", "prediction", "guidance", "published", "name"):
        assert whole.get(group) == copy.get(group)
    module = build_module(copy, build_datamodule(copy))
    trained = [weight for weight in module.net.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) < 5e6
    if name != "quickstart":
        assert copy.net.get("labels") == whole.net.get("labels")
        assert copy.trainer.limit_train_batches * copy.data.batch_size < 6500  # frames an epoch


def test_small_copies_keep_what_the_reports_vary():
    slow, fast = (
        compose(f"experiment={name}", "scale=small").optimizer
        for name in ("cosine_eps_lr5e5", "cosine_eps")
    )
    assert fast.lr * fast.lr_multiplier == pytest.approx(2 * slow.lr * slow.lr_multiplier)


def compose(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("train", overrides=list(overrides))


def test_the_end_of_a_training_says_what_was_not_logged_and_what_was_scored(capsys):
    weights = PublishedWeights({"score/test/accuracy": 0.5}, max_conditions=8)
    summary = Summary(
        "mine", 0, "synthetic", 1, 1, 1, {}, "ours", Machine("cpu"), weights, seconds=1
    )
    print_summary(summary, [Path("run/weights")], "red cube")
    out = capsys.readouterr().out
    assert "mine on synthetic frames: no loss was logged\n" in out
    assert "test 0.5000 (one seed, at most 8 conditions of each list, " in out


def test_mismatch_is_trained_to_predict_noise_and_sampled_as_if_it_were_x0(run):
    code, _, err = run(train, "experiment=mismatch", *SMALL, "trainer.max_steps=1")
    assert code == 0, err
    (folder,) = folders("mismatch")
    trained = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["model"]
    assert (trained["prediction"], trained["sampled_as"]) == ("epsilon", "sample")
    for weights in (folder / "weights", folder / "checkpoints" / "last.ckpt"):
        assert load_model(weights).prediction.name == "sample"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.batch_sizes=[0]", "model.batch_sizes must be whole numbers of at least 1, got [0]"),
        ("model.batch_sizes=[3]", "data.batch_size=4 must be a multiple of each of"),
        ("net.channels=[16]", "net.channels makes images of 8 pixels, data.image_size is 32"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches must be 1"),
        ("trainer.max_epochs=null", "a GAN needs trainer.max_epochs"),
        ("schedule=linear", "a GAN has no schedule: leave it out, and use experiment=dcgan"),
        (
            "callbacks.scoring.sampler={_target_: iclevr_diffusion.diffusion.Sampler, name: ddim,"
            " steps: 5, spacing: trailing}",
            "must be null for a GAN",
        ),
    ],
)
def test_settings_that_a_gan_cannot_have_are_refused(run, tmp_path, setting, line):
    shrunk = [word for word in small("dcgan") if word.split("=")[0] != setting.split("=")[0]]
    code, _, err = run(train, "experiment=dcgan", *shrunk, setting)
    assert (code, err.count("\n")) == (2, 1), err
    assert line in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gan_does_not_go_on_with_other_batches(run):
    arguments = ("experiment=dcgan", *small("dcgan"))
    assert run(train, *arguments, "trainer.max_epochs=1")[0] == 0
    code, _, err = run(train, *arguments, "trainer.max_epochs=2", "resume=true")
    assert code == 2
    assert "was trained with epochs=1, not 2" in err


@pytest.mark.slow
def test_gan_is_trained_resumed_sampled_and_evaluated_by_the_same_commands(run):
    arguments = ("experiment=dcgan", *small("dcgan"), "trainer.max_epochs=2")
    assert run(train, *arguments)[0] == 0
    assert run(train, *arguments, "trainer.max_steps=3")[0] == 0
    code, _, err = run(train, *arguments, "resume=true")
    assert code == 0, err
    code, out, _ = run(train, *arguments, "resume=true")
    assert code == 0
    assert "this run is finished: 8 steps\n" in out
    unbroken, resumed = folders("dcgan")
    for ours, theirs in zip(weights(unbroken), weights(resumed), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = read_metrics(unbroken / "metrics.csv")
    assert [row["train/batch_size"] for row in rows] == [4, 4, 4, 4, 2, 2, 2, 2]
    assert {"train/loss_generator", "train/loss_discriminator", "val/loss"} <= rows[-1].keys()

    code, out, err = run(sample, "weights=outputs/dcgan", "labels='red cube'", "n=2", "strip=true")
    assert code == 0, err
    assert "2 images, generator, one pass" in out
    measured = ("weights=outputs/dcgan", "seeds=2", "reference_frames=0", "out=measured")
    code, _, err = run(evaluate, *measured)
    assert code == 0, err
    (setting,) = json.loads(Path("measured/evaluation.json").read_text())["settings"]
    assert (setting["sampler"], setting["network_calls"]) == ("generator", 1)
    assert len(setting["lists"]["test"]["by_step"]) == 1


def weights(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["callbacks"]["EMA"]["net"]


@pytest.mark.slow
def test_resumed_run_continues_in_its_folder_and_ends_with_the_same_weights(run):
    # The learning rate of a cosine would depend on max_epochs.
    arguments = ("experiment=quickstart", *small("quickstart"), "optimizer.decay=constant")
    assert run(train, *arguments, "trainer.max_epochs=2")[0] == 0
    assert run(train, *arguments, "trainer.max_epochs=1")[0] == 0
    run(train, *arguments, "prediction.name=noise")  # refused: it leaves no folder
    assert run(train, *arguments, "trainer.max_epochs=2", "resume=true")[0] == 0
    unbroken, resumed = folders("quickstart")
    for ours, theirs in zip(weights(unbroken), weights(resumed), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [
        {key: row[key] for key in row if "per_second" not in key}
        for row in read_metrics(unbroken / "metrics.csv")
    ] == [
        {key: row[key] for key in row if "per_second" not in key}
        for row in read_metrics(resumed / "metrics.csv")
    ]


def test_resuming_a_finished_run_leaves_its_results(run, trained):
    summary = (trained / "summary.json").read_text()
    code, out, _ = run(train, *QUICKSTART, *GUIDED, "resume=true")
    assert code == 0
    assert "is finished: 1 step" in out
    assert (trained / "summary.json").read_text() == summary


@pytest.mark.slow
def test_sweep_makes_a_folder_for_each_job(run):
    experiments = "experiment=cosine_eps,linear_eps,cosine_sample,linear_sample"
    code, _, err = run(train, "-m", experiments, *SMALL, "trainer.max_steps=1")
    assert code == 0, err
    (sweep,) = folders("multirun")
    jobs = sorted(path.name for path in sweep.iterdir() if path.is_dir())
    assert jobs == ["0_cosine_eps", "1_linear_eps", "2_cosine_sample", "3_linear_sample"]
    seen = {
        (settings["schedule"]["name"], settings["prediction"])
        for settings in (
            torch.load(sweep / job / "checkpoints" / "last.ckpt", weights_only=True)["model"]
            for job in jobs
        )
    }
    assert seen == {
        (schedule, prediction)
        for schedule in ("linear", "squaredcos_cap_v2")
        for prediction in ("epsilon", "sample")
    }


@pytest.mark.slow
def test_failed_job_of_a_sweep_leaves_the_others_whole(run):
    code, _, err = run(train, "-m", "net.labels=film,none", *SMALL, "trainer.max_steps=1")
    assert code == 2
    assert "got 'film'" in err
    (sweep,) = folders("multirun")
    whole = {job.name: (job / "weights").is_dir() for job in sweep.glob("*_train")}
    assert whole == {"0_train": False, "1_train": True}


def test_sample_generates_the_requested_labels(run, trained):
    arguments = ("labels='Red cubes,  blue sphere'", "n=3", "strip=true", "animation=true")
    for number, part in enumerate(("..", ".", "weights", "checkpoints/last.ckpt")):
        drawn = Path(f"drawn{number}")
        code, out, err = run(sample, f"weights={trained / part}", f"out={drawn}", *arguments)
        assert code == 0, err
        assert "red cube, blue sphere: 3 images" in out
        names = sorted(path.name for path in drawn.iterdir())
        assert names == ["denoising.png", "grid.png", "strip.png"]


def test_sampling_settings_come_from_the_weights_unless_given(run, trained):
    first = ("weights=outputs/quickstart", "labels='red cube'")
    drawn = run(sample, *first)[1]
    assert "dpm_solver 2 steps, spacing karras, guidance 2 at noise below 4" in drawn
    changed = (
        "sampler.name=ddim",
        "sampler.steps=5",
        "guidance.scale=1",
        "sampler.spacing=trailing",
    )
    assert "ddim 5 steps, guidance 1" in run(sample, *first, *changed)[1]
