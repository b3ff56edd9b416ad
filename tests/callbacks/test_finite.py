import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from helpers import datamodule, tiny_module, trainer
from iclevr_diffusion.callbacks.finite import StopOnNonFinite
from iclevr_diffusion.errors import TrainingError


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_run_stops_at_the_step_and_names_the_last_good_checkpoint(tmp_path, bad):
    module = tiny_module()
    checkpoint = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    run = trainer(
        tmp_path, [StopOnNonFinite(), checkpoint], max_epochs=3, enable_checkpointing=True
    )
    honest = module.objective.loss

    def loss(*args):
        factor = bad if run.global_step == 10 else 1.0
        return honest(*args) * factor

    module.objective.loss = loss
    with pytest.raises(TrainingError, match=r"not finite at step 11; .*last\.ckpt"):
        run.fit(module, datamodule())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 8
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
