"""What must match on resume: each class, and all of its arguments."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from iclevr_diffusion.cli.resume_settings import described_node
from iclevr_diffusion.diffusion.loss import Objective
from iclevr_diffusion.training.resume import check_settings
from iclevr_diffusion.utils.errors import UserError


class Weighted(Objective):
    """A user's objective, which does not keep its argument."""

    def __init__(self, schedule, name="sample", power=2.0):
        super().__init__(schedule, name)


def node(target="Weighted", **settings):
    return OmegaConf.create({"_target_": f"{__name__}.{target}", **settings})


def settings(cfg):
    described = described_node(cfg, "prediction")
    return {f"prediction.{name}": value for name, value in described.items()} | {
        "batch_size": 4,
        "processes": 1,
    }


def check(old, new):
    check_settings(Path("last.ckpt"), {"settings": old, "progress": {"batches": 0}}, new)


def test_more_processes_continue_where_one_of_their_steps_ends():
    old = {"batch_size": 8, "processes": 1, "accumulate_grad_batches": 4}
    now = old | {"processes": 2}
    for batches, fits in ((8, True), (4, False)):  # a step of two processes has 64 frames
        content = {
            "settings": old,
            "progress": {"batches": batches, "batches_per_epoch": 20, "epoch_ended": False},
        }
        with nullcontext() if fits else pytest.raises(UserError, match="resume it with 1"):
            check_settings(Path("last.ckpt"), content, now)


def test_a_default_and_the_same_value_given_are_alike():
    check(settings(node()), settings(node(power=2.0)))


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (node(power=3.0), r"prediction\.power=2\.0, not 3\.0"),
        (node("Objective", name="sample"), r"prediction\._target_=\S+\.Weighted, not"),
    ],
)
def test_another_class_or_argument_of_the_users_is_refused(changed, line):
    with pytest.raises(UserError, match=line):
        check(settings(node()), settings(changed))
