"""How programs end."""

import pytest
import torch

from iclevr_diffusion import sample
from iclevr_diffusion.training.distributed import are_several


def test_full_accelerator_ends_in_one_line_with_advice(run, weights_folder, monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("iclevr_diffusion.cli.tasks.sample.refuse_nan", too_much)
    code, _, err = run(sample, f"weights={weights_folder}", "labels='red cube'", "n=1", "out=out")
    assert code == 1
    assert err.startswith("error: the accelerator's memory is full: lower data.batch_size")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("cube", "'cube' is not a setting: write name=value, with quotes of its own around"),
        ("sampler=ddpm", "sampler=… chooses among files that this program does not have; set"),
    ],
)
def test_words_that_are_no_settings_end_in_one_line_with_advice(run, word, line):
    code, _, err = run(sample, "labels='red cube'", word)
    assert code == 2
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("devices", "nodes", "several"),
    [
        (1, 1, False),
        ("1", 1, False),
        ([3], 1, False),
        (1, 2, True),
        (2, 1, True),
        ("2", 1, True),
        ([0, 1], 1, True),
        ("auto", 1, True),
        (-1, 1, True),
    ],
)
def test_one_device_is_told_from_several(devices, nodes, several):
    assert are_several(devices, nodes) is several
