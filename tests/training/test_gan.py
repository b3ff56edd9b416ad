import pytest
import torch

from helpers import SIZE, PixelReader, SaveAt, datamodule, slow, tiny_gan, trainer
from iclevr_diffusion.diffusion.trained import GAN
from iclevr_diffusion.training.callbacks import scoring as scoring_callback
from iclevr_diffusion.training.callbacks.ema import EMA
from iclevr_diffusion.training.callbacks.nan_guard import NaNGuard
from iclevr_diffusion.training.callbacks.scoring import Scoring
from iclevr_diffusion.training.loggers import MetricsCSV
from iclevr_diffusion.utils.errors import TrainingError


@pytest.mark.parametrize("batch", [11, *slow(3, 8)])
def test_resumed_run_ends_with_the_same_weights(tmp_path, batch):
    settings = {"max_epochs": 2}
    unbroken, save = tiny_gan(), SaveAt(batch, tmp_path / "last.ckpt")
    trainer(tmp_path, [EMA(0.9), save], **settings).fit(unbroken, datamodule())
    resumed = tiny_gan()
    trainer(tmp_path, [EMA(0.9)], **settings).fit(
        resumed, datamodule(), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


class Counting(torch.optim.Adam):
    counts: dict[int, int] = {}  # noqa: RUF012

    def step(self, *arguments, **named):
        self.counts[id(self)] = self.counts.get(id(self), 0) + 1
        return super().step(*arguments, **named)


def test_batches_shrink_and_each_part_moves_both_networks_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "counts", {})
    monkeypatch.setattr(torch.optim, "Adam", Counting)
    run = trainer(tmp_path, max_epochs=2)
    run.fit(tiny_gan(batch_sizes=(4, 2)), datamodule(batch_size=4))
    batches = run.num_training_batches
    assert list(Counting.counts.values()) == [batches + 2 * batches] * 2
    assert run.global_step == 2 * batches  # a step is a batch of the data


def test_each_network_moves_by_its_own_loss_alone(tmp_path):
    for frozen in ("net", "discriminator"):
        module = tiny_gan()
        before = {name: value.clone() for name, value in module.named_parameters()}
        number = {"net": 0, "discriminator": 1}[frozen]
        configure = module.configure_optimizers

        def without_one(number=number, configure=configure):
            configured = configure()
            for group in configured[number]["optimizer"].param_groups:
                group["lr"] = group["initial_lr"] = 0.0
            configured[number]["lr_scheduler"]["scheduler"].base_lrs = [0.0]
            return configured

        module.configure_optimizers = without_one
        trainer(tmp_path, max_steps=2).fit(module, datamodule())
        for name, value in module.named_parameters():
            assert torch.equal(value, before[name]) == name.startswith(frozen), name


@pytest.mark.slow
def test_discriminator_learns_to_tell_frames_from_a_frozen_generator(tmp_path):
    module = tiny_gan(lr=1e-2)
    logger = MetricsCSV(tmp_path / "metrics.csv")
    run = trainer(tmp_path, max_epochs=6, logger=logger, log_every_n_steps=1)
    original = module.clip

    def clip(net):
        norm = original(net)
        if net is module.net:
            for parameter in net.parameters():
                parameter.grad = None
        return norm

    module.clip = clip
    run.fit(module, datamodule())
    losses = [row["train/loss_discriminator"] for row in logger.rows]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])


def test_nan_stops_the_run(tmp_path):
    module = tiny_gan()
    with torch.no_grad():
        next(module.net.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError, match="NaN or infinite at step 1 "):
        trainer(tmp_path, [NaNGuard()]).fit(module, datamodule())


def test_collapsed_generator_is_reported(tmp_path, caplog, monkeypatch):
    alerts = []
    monkeypatch.setattr(scoring_callback, "alert", lambda loggers, *words: alerts.append(words))
    module = tiny_gan(lr=1e-12)
    with torch.no_grad():
        module.net.layers[-2].weight.zero_()
    conditions = {"test": [("red cube",), ("blue sphere",)]}
    scoring = Scoring(conditions, PixelReader(), None, None, 1, tmp_path)
    trainer(tmp_path, [EMA(0.0), scoring]).fit(module, datamodule())
    assert scoring.collapsed_lists == ["test"]
    line = "the network has collapsed at step 8: all images of the list test are the same"
    assert line in caplog.text
    assert alerts == [("collapse", line)]


def test_average_takes_the_statistics_of_the_batch_norms_too(tmp_path):
    module, average = tiny_gan(), EMA(0.5)
    trainer(tmp_path, [average], max_steps=3).fit(module, datamodule())
    raw, averaged = module.net.state_dict(), average.net.state_dict()
    moved = [name for name in raw if "running" in name]
    assert moved
    assert all(not torch.equal(raw[name], averaged[name]) for name in moved)


def test_generator_makes_each_image_from_its_own_noise_and_labels():
    draw = tiny_gan().pipeline(tiny_gan().net.eval())
    labels = torch.zeros(3, 24)
    labels[2, 0] = 1

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw(labels, generators(0, 1, 1))
    assert together.shape == (3, 3, SIZE, SIZE)
    assert together.abs().max() <= 1
    alone = draw(labels[1:2], generators(1))
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.equal(together[1], together[2])
    torch.testing.assert_close(draw(labels, generators(0, 1, 1), batch_size=2), together)


def test_operations_of_a_training_image_count_both_networks():
    module = tiny_gan()  # 4 and 24 numbers, 8 channels at 4x4, 8 at 8x8, 3 at 16x16
    taps = [(4 + 24) * 8 * 16, 8 * 8 * 16 * 16, 8 * 3 * 16 * 64]  # transposed: of their inputs
    generator = GAN(module.net).flops_forward()
    assert generator == 2 * sum(taps)
    plane, down = 24 * 16 * 16, [4 * 8 * 16 * 64, 8 * 8 * 16 * 16, 8 * 16]
    discriminator = 2 * (plane + sum(down))
    assert module.flops_per_training_image(generator) == 3 * generator + 9 * discriminator
