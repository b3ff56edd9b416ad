"""Headings of cubes, found in frames and encoded for networks."""

import math

import pytest
import torch

from iclevr_diffusion.data.headings import encode_headings, find_headings, wrap
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.synthetic.dataset import Synthetic

QUARTER = math.pi / 2


def test_headings_that_look_the_same_have_one_code():
    headings = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(encode_headings(headings), encode_headings(headings + QUARTER))
    torch.testing.assert_close(encode_headings(headings), encode_headings(wrap(headings)))
    assert encode_headings(torch.tensor([torch.nan])).tolist() == [[0.0, 0.0]]


def test_headings_are_found_within_a_few_degrees(tmp_path):
    source = Synthetic(8, seed=5, cache=tmp_path)
    frames = source.load_frames()
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    true = source.find_headings(frames, positions)
    found = find_headings(frames.images, frames.labels, frames.sequences, positions)
    assert torch.equal(found.isfinite(), true.isfinite())
    errors = wrap(found - true)[true.isfinite()].abs().rad2deg()
    assert len(errors) > 10
    assert errors.median() < 4
    assert errors.max() < 16


def test_an_object_keeps_its_heading_in_later_frames(tmp_path):
    source = Synthetic(20, cache=tmp_path)
    headings = source.find_headings(source.load_frames(), torch.empty(0)).view(20, 3, -1)
    labels = source.frame_labels().view(20, 3, -1)
    is_cube = (torch.arange(24) < 8) & (labels > 0)
    assert torch.equal(headings.isfinite(), is_cube)
    for step in (0, 1):
        there = is_cube[:, step]
        assert torch.equal(headings[:, step][there], headings[:, step + 1][there])


@pytest.mark.parametrize("turn", [0.3, -0.7])
def test_a_heading_wraps_into_a_quarter_turn(turn):
    for quarters in range(-3, 4):
        assert float(wrap(torch.tensor(turn + quarters * QUARTER))) == pytest.approx(turn, abs=1e-5)
