"""Poses of objects, found in frames and encoded for networks."""

import math

import pytest
import torch

from iclevr_diffusion.data.poses import encode_poses, find_poses, wrap
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.synthetic.dataset import Synthetic

QUARTER = math.pi / 2


def test_poses_that_look_the_same_have_one_code():
    at, headings = torch.zeros(13, 2), torch.linspace(-3, 3, 13)[:, None]
    code = encode_poses(at, torch.cat([at + 0.5, headings], dim=1))
    turned = encode_poses(at, torch.cat([at + 0.5, headings + QUARTER], dim=1))
    torch.testing.assert_close(code, turned)
    torch.testing.assert_close(code, encode_poses(at, torch.cat([at + 0.5, wrap(headings)], dim=1)))
    assert (code[:, :2] == 0.5).all()


def test_an_object_without_a_pose_keeps_its_position():
    code = encode_poses(torch.tensor([[0.25, -0.5]]), torch.full((1, 3), torch.nan))
    assert code.tolist() == [[0.25, -0.5, 0, 0]]


def test_poses_are_found_within_a_few_degrees_and_a_quarter_of_a_pixel(tmp_path):
    source = Synthetic(24, seed=5, cache=tmp_path)
    frames = source.load_frames()
    positions = find_positions(frames.images, frames.labels, frames.sequences)
    true = source.find_poses(frames, positions)
    found = find_poses(frames.images, frames.labels, frames.sequences, positions)
    assert torch.equal(found.isfinite(), true.isfinite())
    known = true[..., 0].isfinite()
    assert len(known.nonzero()) > 80
    cubes = true.isfinite().all(-1)
    turns = wrap(found - true)[cubes][:, 2].abs().rad2deg()
    assert len(turns) > 30
    assert turns.median() < 3
    assert turns.max() < 16
    pixels = (found - true)[known][:, :2] * frames.images.shape[-1] / 2
    assert pixels.norm(dim=1).median() < 0.2
    coarse = (positions - true[..., :2])[known] * frames.images.shape[-1] / 2
    assert pixels.norm(dim=1).mean() < coarse.norm(dim=1).mean() / 2


def test_an_object_keeps_its_pose_in_later_frames(tmp_path):
    source = Synthetic(20, cache=tmp_path)
    poses = source.find_poses(source.load_frames(), torch.empty(0)).view(20, 3, 24, 3)
    present = source.frame_labels().view(20, 3, -1) > 0
    assert torch.equal(poses[..., :2].isfinite().all(-1), present)
    assert torch.equal(poses[..., 2].isfinite(), present & (torch.arange(24) < 8))
    for step in (0, 1):
        there = present[:, step]
        same = torch.stack([poses[:, step][there], poses[:, step + 1][there]]).nan_to_num()
        assert torch.equal(*same)


@pytest.mark.parametrize("turn", [0.3, -0.7])
def test_a_heading_wraps_into_a_quarter_turn(turn):
    for quarters in range(-3, 4):
        assert float(wrap(torch.tensor(turn + quarters * QUARTER))) == pytest.approx(turn, abs=1e-5)
