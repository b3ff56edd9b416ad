import math

import pytest
import torch
from torch.utils.data import DataLoader

from helpers import datamodule, slow, tiny_module, trainer
from iclevr_diffusion.training.callbacks.checkpoint import Checkpoints
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.utils.errors import TrainingError


@pytest.mark.parametrize(
    ("where", "bad"),
    [
        ("loss", math.nan),
        ("gradient", math.inf),
        *slow(("loss", math.inf), ("gradient", math.nan)),
    ],
)
def test_run_stops_at_the_step_and_names_frames_and_the_last_good_checkpoint(tmp_path, bad, where):
    module = tiny_module()
    checkpoints = Checkpoints(tmp_path, {"batch_size": 4})
    callbacks = [NaNGuard(), EMA(), checkpoints]
    run = trainer(tmp_path, callbacks, max_epochs=3, enable_checkpointing=True)
    seen = []

    if where == "loss":
        honest = module.objective.loss

        def loss(*args):
            return honest(*args) * (bad if run.global_step == 10 else 1.0)

        module.objective.loss = loss
    else:

        def spoil(gradient):
            return gradient * (bad if run.global_step == 10 else 1.0)

        next(module.net.parameters()).register_hook(spoil)
    step = module.training_step

    def training_step(batch, batch_idx):
        seen[:] = batch.indices.tolist()
        return step(batch, batch_idx)

    module.training_step = training_step
    with pytest.raises(TrainingError, match=r"NaN or infinite at step 11 .*last\.ckpt") as error:
        run.fit(module, datamodule())
    names = ", ".join(f"frame_{index:03d}.png" for index in seen)
    assert f"(frames {names})" in str(error.value)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_no_checkpoint_is_written_of_what_is_not_finite(tmp_path, monkeypatch):
    # As on an accelerator, where not every step is looked at as it happens.
    monkeypatch.setattr(NaNGuard, "on_train_epoch_end", lambda *arguments: None)
    monkeypatch.setattr(NaNGuard, "on_validation_start", lambda *arguments: None)
    module = tiny_module()
    module.objective.loss = lambda output, *rest: output.mean() * math.nan
    finite = NaNGuard(every_n_steps=1000)
    checkpoints = Checkpoints(tmp_path, {"batch_size": 4})
    run = trainer(tmp_path, [finite, checkpoints], enable_checkpointing=True)
    check = NaNGuard._check
    monkeypatch.setattr(
        NaNGuard,
        "_check",
        lambda self, trainer: trainer.is_last_batch and check(self, trainer),
    )
    with pytest.raises(TrainingError, match=r"NaN or infinite at step 1 .*no checkpoint yet"):
        run.fit(module, datamodule())
    assert not list(tmp_path.glob("*.ckpt"))


def test_batches_may_have_different_sizes(tmp_path):
    def cut(batch):
        values = {name: value[:2] for name, value in batch._asdict().items() if value is not None}
        return batch._replace(**values)

    data = datamodule()
    data.setup("fit")
    *batches, last = data.train_dataloader()
    run = trainer(tmp_path, [NaNGuard(every_n_steps=1000)], max_epochs=2)
    data.train_dataloader = lambda: DataLoader([*batches, cut(last), *batches], batch_size=None)
    run.fit(tiny_module(), data)
    assert run.global_step == 2 * (2 * len(batches) + 1)
