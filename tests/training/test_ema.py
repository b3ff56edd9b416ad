import copy

import pytest
import torch
from torch import nn

from helpers import datamodule, tiny_module, trainer
from iclevr_diffusion.training.callbacks.ema import EMA, averaged_net


def average_of(weights, decay):
    """Feed a single weight's values to an EMA, one an update."""
    net, ema = nn.Linear(1, 1, bias=False), EMA(decay)
    ema.net = copy.deepcopy(net)
    for weight in weights:
        nn.init.constant_(net.weight, weight)
        ema.update(net)
    return ema.net.weight.item()


def test_average_is_that_of_the_formula():
    weights, expected = [1.0, 5.0, -2.0, 3.0] * 30, 0.0
    for n, weight in enumerate(weights):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight

    assert average_of(weights, 0.9) == pytest.approx(expected, abs=1e-3)


def test_decay_zero_copies_the_network():
    assert average_of([1.0, 7.0], 0.0) == pytest.approx(7.0)


def test_warm_up_forgets_the_start_soon():
    # With a fixed decay of .9999 a hundred updates would move the average by one percent.
    assert average_of([1.0] * 100, 0.9999) == pytest.approx(1.0, abs=1e-3)


def test_statistics_are_averaged_and_counters_copied():
    net, ema = nn.BatchNorm1d(2), EMA(0.9)
    ema.net = copy.deepcopy(net)
    net.running_mean.fill_(3.0)
    net.num_batches_tracked += 7
    ema.update(net)  # the first update's decay is 1 / 10
    assert ema.net.running_mean.tolist() == pytest.approx([2.7, 2.7])
    assert ema.net.num_batches_tracked == 7


def test_training_leaves_an_average_beside_the_network(tmp_path):
    module, ema = tiny_module(), EMA(0.9)
    run = trainer(tmp_path, [ema])
    run.fit(module, datamodule())
    assert ema.updates == run.global_step
    assert averaged_net(run, module) is ema.net
    assert not any(parameter.requires_grad for parameter in ema.net.parameters())
    ours, theirs = module.net.state_dict(), ema.net.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_accumulated_batches_count_as_one_update(tmp_path):
    ema = EMA(0.9)
    trainer(tmp_path, [ema], accumulate_grad_batches=4).fit(tiny_module(), datamodule())
    assert ema.updates == 2  # of 8 batches


def test_without_an_average_the_network_itself_is_used(tmp_path):
    module = tiny_module()
    assert averaged_net(trainer(tmp_path), module) is module.net
