import dataclasses
from pathlib import Path

import pytest
import torch

from helpers import RandomFrames, datamodule
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.labels import Vocabulary
from iclevr_diffusion.data.loader import FrameLoader
from iclevr_diffusion.data.positions import check_positions_known
from iclevr_diffusion.data.splits import split_by_sequence
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.utils.errors import UserError


def loader(rank=0, world_size=1, batch_size=4, shuffle=True, seed=0, progress=(0, 0), count=36):
    frames = RandomFrames(12).load_frames()
    return FrameLoader(
        frames, torch.arange(count), batch_size, rank, world_size, shuffle, seed, lambda: progress
    )


def seen(*loaders):
    return [index for each in loaders for batch in each for index in batch.indices.tolist()]


def test_an_epoch_shows_every_frame_once():
    assert sorted(seen(loader())) == list(range(36))


def test_the_incomplete_batch_is_dropped_in_training_and_kept_in_validation():
    assert len(seen(loader(batch_size=5))) == 35
    assert seen(loader(batch_size=5, shuffle=False)) == list(range(36))


def test_order_is_a_function_of_seed_and_epoch():
    assert seen(loader()) == seen(loader())
    assert seen(loader()) != seen(loader(seed=1))
    assert seen(loader()) != seen(loader(progress=(1, 0)))


def test_iteration_continues_after_the_batches_that_were_done():
    assert seen(loader(progress=(2, 3))) == seen(loader(progress=(2, 0)))[12:]
    assert len(loader(progress=(2, 3))) == 9


def test_two_processes_see_in_each_step_what_one_would():
    whole = list(loader(batch_size=6))
    halves = zip(loader(0, 2, 3), loader(1, 2, 3), strict=True)
    for one, (first, second) in zip(whole, halves, strict=True):
        assert torch.equal(one.indices, torch.cat([first.indices, second.indices]))
        assert torch.equal(one.images, torch.cat([first.images, second.images]))


def test_batches_carry_the_positions_in_their_frames():
    positions = torch.rand(36, 24, 2)
    frames = RandomFrames(12).load_frames()
    for batch in FrameLoader(frames, torch.arange(36), 4, positions=positions):
        assert torch.equal(batch.positions, positions[batch.indices])
    assert next(iter(loader())).positions is None


def test_frames_most_of_whose_positions_are_unknown_are_refused(caplog):
    positions = torch.zeros(8, 24, 2)
    check_positions_known(positions)
    positions[:4, 0] = torch.nan
    check_positions_known(positions)
    assert "unknown in 4 of 8 training frames" in caplog.text
    positions[4, 3, 1] = torch.nan
    with pytest.raises(UserError, match=r"5 of 8 .* net=unet data\.crop_size=null"):
        check_positions_known(positions)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_no_validation_frame_is_padded_or_lost(world_size):
    loaders = [loader(rank, world_size, 4, shuffle=False) for rank in range(world_size)]
    assert sorted(seen(*loaders)) == list(range(36))
    assert [len(each) for each in loaders] == [len(list(each)) for each in loaders]


def test_every_process_has_a_validation_frame_where_there_are_enough():
    # Six frames on four processes: in slices of a global batch the last ones would have none.
    assert [len(seen(loader(rank, 4, 9, shuffle=False, count=6))) for rank in range(4)] == [
        2,
        2,
        1,
        1,
    ]


def test_batches_hold_the_frames_they_name():
    frames = RandomFrames(12).load_frames()
    batch = next(iter(loader()))
    assert torch.equal(batch.images, frames.images[batch.indices])
    assert torch.equal(batch.labels, frames.labels[batch.indices])
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.9])
def test_no_sequence_is_on_both_sides_of_the_split(fraction):
    sequences = torch.arange(60) // 3
    train, val = split_by_sequence(sequences, fraction)
    assert not set(sequences[train].tolist()) & set(sequences[val].tolist())
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(60))
    assert (len(val) > 0) == (fraction > 0)


def test_split_does_not_depend_on_the_seed():
    first, second = datamodule(seed=0), datamodule(seed=1)
    for each in (first, second):
        each.setup("fit")
    assert torch.equal(first.val_indices, second.val_indices)


def test_too_few_frames_for_a_batch_are_refused():
    with pytest.raises(UserError, match=r"33 training frames do not fill one batch of 64"):
        datamodule(batch_size=64).setup("fit")


class Shapes(DataModule):
    """A data set of a user's own, with two labels and known positions."""

    vocabulary = Vocabulary(["circle", "square"])
    image_size = 8

    def load_frames(self):
        labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).repeat(4, 1)
        positions = labels[..., None] * torch.tensor([[0.5, 0.25], [-0.5, 0.75]])
        return Frames(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), labels, positions=positions)

    def conditions(self):
        return {"validation": [("circle",), ("circle", "square")]}

    def description(self):
        return {"source": "shapes"}


def test_a_data_set_of_ones_own_needs_three_methods():
    data = Shapes(batch_size=4, val_fraction=0.25)
    data.with_positions = True
    data.check(2)
    assert data.batches(2) == (1, 1)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 8, 8)
    assert torch.equal(batch.positions != 0, batch.labels[..., None].expand(4, 2, 2) != 0)
    assert data.identity() == {"source": "shapes", "val_fraction": 0.25}
    assert data.frame_names[3] == "frame 3"
    assert len(data.train_images()) == 9
    prior = data.position_prior()
    assert prior.density.sum() == pytest.approx(1)
    assert (prior.density > 0).sum() == 2


class Downloaded(Shapes):
    """Its frames are there after prepare_data()."""

    calls = ""

    def prepare_data(self):
        self.calls += "p"

    def load_frames(self):
        assert "p" in self.calls
        self.calls += "l"
        return super().load_frames()


def test_frames_are_loaded_once_and_after_they_were_prepared():
    data = Downloaded(batch_size=2, val_fraction=0.2)
    data.check(1)
    data.frame_labels()
    data.setup("fit")
    assert data.calls == "pl"


@pytest.mark.parametrize(
    ("lists", "line"),
    [
        ({}, "need a list named validation"),
        ({"validation": [("circle",)], "test": []}, "list test is empty"),
        ({"validation": [("triangle",)]}, "unknown label 'triangle'"),
        ({"validation": ["circle"]}, r"list validation needs tuples of names: \('circle',\)"),
    ],
)
def test_condition_lists_are_checked_before_the_training(lists, line):
    data = Shapes(batch_size=2)
    data.conditions = lambda: lists
    with pytest.raises(UserError, match=line):
        data.check(1)


@pytest.mark.parametrize(
    ("description", "line"),
    [
        (None, "needs a text named source"),
        ({"frames": 12}, "needs a text named source"),
        ({"source": Path("shapes")}, "needs a text named source"),
        ({"source": "shapes", "root": Path("data")}, "Object of type PosixPath is not JSON"),
    ],
)
def test_description_is_checked_before_the_training(description, line):
    data = Shapes(batch_size=2)
    data.description = lambda: description
    with pytest.raises(UserError, match=line):
        data.check(1)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("images", torch.zeros(12, 3, 8, 8), "images of torch.uint8 .*, got torch.float32"),
        ("images", torch.zeros(12, 8, 8, 3).byte(), r"\(12, 3, 8, 8\), got .*\(12, 8, 8, 3\)"),
        ("labels", torch.ones(12, 3), r"labels of torch.float32 and shape \(12, 2\), got"),
        ("labels", torch.ones(12, 2).long(), "got torch.int64"),
        ("sequences", torch.arange(11), r"shape \(12,\), got torch.int64 and \(11,\)"),
    ],
)
def test_frames_are_checked_before_the_training(name, value, line):
    data = Shapes(batch_size=2)
    frames = dataclasses.replace(data.load_frames(), **{name: value})
    data.load_frames = lambda: frames
    with pytest.raises(UserError, match=line):
        data.check(1)


def test_frames_are_checked_even_if_their_sequences_are_known_without_them():
    data = Shapes(batch_size=2)
    frames = data.load_frames()
    data.sequences = lambda: frames.sequences
    data.load_frames = lambda: dataclasses.replace(frames, images=frames.images / 255)
    data.check(1)
    with pytest.raises(UserError, match=r"images of torch.uint8 .*, got torch.float32"):
        data.setup("fit")


def test_frames_with_an_unknown_position_are_not_measured():
    data = Shapes(batch_size=2, val_fraction=0.2)
    data.with_positions = True
    data.setup("fit")
    assert torch.equal(data.frames_to_measure(), data.val_indices)
    data.positions[data.val_indices[1:], 1] = torch.nan
    assert torch.equal(data.frames_to_measure(), data.val_indices[:1])
    data.positions[data.val_indices] = torch.nan
    data.positions[data.train_indices[0]] = torch.nan
    assert torch.equal(data.frames_to_measure(), data.train_indices[1:])


def test_without_positions_there_is_no_prior():
    data = Shapes(batch_size=4)
    data.setup("fit")
    assert data.positions is data.position_prior() is None
