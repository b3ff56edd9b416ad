"""The configs for debugging: each runs in seconds, apart from real runs."""

import json
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from helpers import datamodule, slow, tiny_module, trainer
from iclevr_diffusion import train
from iclevr_diffusion.cli import trainer_settings
from iclevr_diffusion.cli.command import CONF
from iclevr_diffusion.cli.instantiate import plain
from iclevr_diffusion.cli.schema import Train
from iclevr_diffusion.cli.validate import check_config
from iclevr_diffusion.training.loggers import read_metrics

NAMES = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))
SMALL = (
    "net=tiny",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "data.image_size=32",
    "data.sequences=8",
    "data.batch_size=2",
    "schedule.timesteps=20",
    "sampler.steps=2",
)
SMALL_GAN = (
    *(word for word in SMALL if not word.startswith(("net", "schedule", "sampler"))),
    "net.channels=[16,8,8]",
    "model.batch_sizes=[2]",
)


def compose(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra_compose("train", overrides=list(overrides))
    check_config(cfg, Train)
    return cfg


def test_the_five_configs_are_there():
    assert NAMES == ["anomaly", "fast", "limit", "overfit", "profile"]


@pytest.mark.parametrize(
    "experiment",
    ["quickstart", *slow("cosine_eps", "dcgan")],
)
@pytest.mark.parametrize("name", NAMES)
def test_debugging_is_no_real_run(name, experiment):
    cfg = compose(f"experiment={experiment}", f"debug={name}")
    assert cfg.name == "debug"
    assert cfg.published is None
    assert not any(cfg.logger.values())
    trainer_settings.check_trainer(plain(cfg.trainer))


def test_loggers_are_on_where_asked_for():
    cfg = compose("experiment=cosine_eps", "debug=overfit", "logger=wandb")
    assert cfg.logger.wandb is not None


def run_folder(name):
    (folder,) = (path for path in Path("outputs", name).iterdir() if path.is_dir())
    return folder


@pytest.mark.parametrize(
    ("words", "n"),
    [
        (
            (
                "experiment=cosine_eps_adam",
                *SMALL,
                "trainer.accumulate_grad_batches=1",
                "+trainer.fast_dev_run=2",
            ),
            2,
        ),
        (("experiment=dcgan", *SMALL_GAN, "debug=fast"), 1),
    ],
)
def test_a_fast_run_does_a_bit_of_everything(run, words, n):
    code, _, err = run(train, *words)
    assert code == 0, err
    assert not Path("outputs", "cosine_eps_adam").exists()
    folder = run_folder("debug")
    (steps,) = {row["step"] + 1 for row in read_metrics(folder / "metrics.csv")[-1:]}
    figures = json.loads((folder / "summary.json").read_text())
    assert (figures["name"], figures["steps"], steps) == ("debug", n, n)
    assert "val/loss" in figures["metrics"]
    assert "score/test/accuracy" in figures["metrics"]
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "images" / "sample_test_0000.png").is_file()
    assert (folder / "weights").is_dir()
    assert not (folder / "tensorboard").exists()
    assert not (folder / "wandb").exists()


@pytest.mark.slow
def test_overfitting_one_batch_brings_the_loss_to_nearly_zero(tmp_path):
    settings = compose("experiment=cosine_eps", "debug=overfit")
    assert settings.trainer.overfit_batches == 1
    assert settings.fixed_noise
    module = tiny_module(lr=1e-2)
    module.fixed_noise = True
    losses = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))
    program = trainer(tmp_path, overfit_batches=1, max_epochs=80, check_val_every_n_epoch=80)
    program.fit(module, datamodule())
    assert losses[0] > 0.5
    assert losses[-1] < 0.03


@pytest.mark.parametrize("name", ["simple", "advanced", "pytorch"])
def test_profilers_write_to_the_run_folder(tmp_path, name):
    folder = tmp_path / "profile"
    program = trainer(
        tmp_path,
        profiler=trainer_settings.profiler(name, folder),
        limit_train_batches=6,
        limit_val_batches=1,
    )
    program.fit(tiny_module(), datamodule())
    assert "FIT Profiler Report" in (folder / f"fit-{name}.txt").read_text()
    assert any(folder.glob("*.pt.trace.json")) == (name == "pytorch")
