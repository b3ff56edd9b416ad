"""Training under 16-mixed; a scaler on the CPU stands in for a GPU's."""

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from helpers import SaveAt, datamodule, slow, tiny_gan, tiny_module, trainer
from iclevr_diffusion.cli.trainer_settings import best_precision
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.diffusion import DiffusionModule
from iclevr_diffusion.training.loggers import MetricsCSV
from iclevr_diffusion.training.optimizer import OptimizerSettings
from iclevr_diffusion.utils.errors import TrainingError

OVERFLOWS = 2.0**60  # a first scale with which several gradients overflow


def half(scale=2.0**10):
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))


def small_uvit(optimizer):
    torch.manual_seed(0)
    net = UViT(image_size=16, channels=[8, 16], blocks=[1, 1], width=32, depth=1, head_dim=16)
    matrix_lr = 1e-3 if optimizer == "muon" else None
    settings = OptimizerSettings(name=optimizer, lr=1e-3, matrix_lr=matrix_lr, warmup_steps=100)
    return DiffusionModule(net, Objective(NoiseSchedule(timesteps=50), "v_prediction"), settings)


def fit(folder, module, *callbacks, scale=None, **settings):
    logger = MetricsCSV(folder / "metrics.csv")
    run = trainer(
        folder,
        [NaNGuard(), *callbacks],
        logger=logger,
        log_every_n_steps=1,
        plugins=[] if scale is None else [half(scale)],
        **settings,
    )
    run.fit(module, datamodule())
    return run, [row for row in logger.rows if "train/lr" in row]


@pytest.mark.parametrize("kind", ["unet", "gan", *slow("adamw", "muon")])
def test_gradients_are_those_of_float32_before_they_are_clipped_and_logged(tmp_path, kind):
    def norms(scale):
        make = {"unet": tiny_module, "gan": tiny_gan}.get(kind, lambda: small_uvit(kind))
        _, rows = fit(tmp_path, make(), scale=scale, max_epochs=1)
        return [row["train/grad_norm"] for row in rows]

    exact = norms(None)
    assert len(exact) == 8
    assert norms(2.0**10) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("optimizer", "accumulate"), [("adamw", 1), ("muon", 3), *slow(("adamw", 3), ("muon", 1))]
)
def test_skipped_step_moves_nothing_and_is_no_error(tmp_path, optimizer, accumulate, recwarn):
    module, ema = small_uvit(optimizer), EMA(0.9)
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    settings = {"scale": OVERFLOWS, "accumulate_grad_batches": accumulate}
    fit(tmp_path, module, ema, **settings, max_epochs=1)
    assert ema.updates == 0
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


@pytest.mark.slow
def test_training_continues_once_the_scale_fits(tmp_path):
    module, ema = small_uvit("adamw"), EMA(0.9)
    run, rows = fit(tmp_path, module, ema, scale=OVERFLOWS, max_epochs=8)
    steps = [row for row in rows if "train/grad_norm" in row]
    skipped = run.global_step - len(steps)
    assert 1 < skipped < 60
    assert all(math.isfinite(row["train/grad_norm"]) for row in steps)
    assert ema.updates == len(steps)
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == len(steps)
    assert steps[0]["train/lr"] == pytest.approx(1e-5)  # the first of 100 steps of warm-up
    assert run.precision_plugin.scaler.get_scale() == OVERFLOWS / 2**skipped


@pytest.mark.parametrize("kind", ["diffusion", "gan"])
def test_gradient_that_always_overflows_ends_the_run(tmp_path, kind):
    module = tiny_gan() if kind == "gan" else tiny_module()
    part = module.discriminator if kind == "gan" else module.net
    next(part.parameters()).register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"overflows in float16 at step \d+,.*32-true") as error:
        fit(tmp_path, module, scale=2.0**-14, max_epochs=2)
    assert "\n" not in str(error.value)


def test_loss_that_is_nan_ends_the_run_all_the_same(tmp_path):
    module = tiny_module()
    honest = module.objective.loss

    def loss(*args):
        return honest(*args) * (math.nan if module.global_step == 5 else 1.0)

    module.objective.loss = loss
    with pytest.raises(TrainingError, match="NaN or infinite at step 6 "):
        fit(tmp_path, module, scale=2.0**10)


@pytest.mark.parametrize("batch", [6, *slow(3)])
def test_resumed_run_ends_with_the_same_weights_and_scale(tmp_path, batch):
    def run(*callbacks, **resume):
        module, ema = small_uvit("adamw"), EMA(0.9)
        # Within the first steps some are skipped.
        fitted = trainer(tmp_path, [ema, *callbacks], max_epochs=2, plugins=[half(2.0**22)])
        fitted.fit(module, datamodule(), **resume)
        scaler = fitted.precision_plugin.scaler
        return {**module.net.state_dict(), "scale": torch.tensor(scaler.get_scale())}, ema.updates

    unbroken, updates = run(SaveAt(batch, tmp_path / "last.ckpt"))
    resumed, updates_resumed = run(ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert updates_resumed == updates < 16
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize(
    ("cuda", "bfloat16", "accelerator", "best"),
    [
        (True, True, "auto", "bf16-mixed"),
        (True, False, "auto", "16-mixed"),
        (True, False, "gpu", "16-mixed"),
        (True, False, "cuda", "16-mixed"),
    ],
)
def test_best_precision_of_a_gpu(monkeypatch, cuda, bfloat16, accelerator, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
    assert best_precision(accelerator) == best
    assert best_precision("cpu") != "16-mixed"
