import dataclasses
import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor

from iclevr_diffusion.data.evaluator_datamodule import HELD_OUT_SHARE
from iclevr_diffusion.data.labels import ICLEVR_LABELS
from iclevr_diffusion.data.positions import find_positions
from iclevr_diffusion.data.splits import split_by_sequence
from iclevr_diffusion.data.synthetic.dataset import Synthetic, synthetic_frames
from iclevr_diffusion.data.types import Frames, to_unit_range
from iclevr_diffusion.diffusion.guidance import Denoiser
from iclevr_diffusion.diffusion.pipeline import DenoisingPipeline
from iclevr_diffusion.diffusion.prediction import find_prediction
from iclevr_diffusion.diffusion.samplers import Sampler
from iclevr_diffusion.diffusion.schedule import NoiseSchedule
from iclevr_diffusion.evaluation import two_sample
from iclevr_diffusion.evaluation.classifier import Evaluator
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.evaluation_report import fidelity_lines
from iclevr_diffusion.evaluation.fidelity import (
    fidelity,
    grain,
    held_out_frames,
    pipeline_fidelity,
    sharpness,
)
from iclevr_diffusion.evaluation.object_crops import crop, on_floor
from iclevr_diffusion.evaluation.results import Controlled, Evaluation, Fidelity, SettingResult
from iclevr_diffusion.evaluation.run_evaluation import wants_fidelity
from iclevr_diffusion.evaluation.two_sample import TwoSampleNet, high_pass, two_sample_auc
from iclevr_diffusion.models.detail import DetailNet
from iclevr_diffusion.models.uvit import UViT
from iclevr_diffusion.utils.errors import UserError

FIGURES = {"frechet", "kernel", "auc", "sharpness", "grain"}
SEQUENCES = 40  # of each set of synthetic frames


class GrainEvaluator(Evaluator):
    """Its features are the mean size of the high-pass in each channel."""

    name = "the grain evaluator"
    num_features = 3
    max_count = 0

    def classify(self, images: Tensor) -> ClassifierOutput:
        features = 10 * high_pass(images).abs().mean((2, 3))
        return ClassifierOutput(torch.zeros(len(images), 24), None, features)


def blurred(images: Tensor, sigma: float = 0.4) -> Tensor:
    """uint8 images under a Gaussian of ``sigma`` pixels, rounded again."""
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2)
    kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    result = F.conv2d(padded.flatten(0, 1)[:, None], kernel).view(images.shape)
    return result.round().to(torch.uint8)


def test_flat_images_have_no_grain_ratio():
    images = torch.zeros(24, 3, 64, 64, dtype=torch.uint8)
    images[:, :, 10:14, 10:14] = 255
    figures = fidelity(images, images, torch.arange(24), GrainEvaluator()).images
    assert set(figures) == FIGURES - {"grain"}


def positions_of(frames: Frames) -> Tensor:
    return find_positions(frames.images, frames.labels, frames.sequences)


def compared(real: Frames, generated: Tensor, generated_positions: Tensor, evaluator: Evaluator):
    return fidelity(
        real.images,
        generated,
        real.sequences,
        evaluator,
        real.labels,
        positions_of(real),
        generated_positions,
    )


def noisy_frames(seed: int) -> Frames:
    """Synthetic frames with rendering noise as real ones have, about 1.5 of 255."""
    frames = synthetic_frames(SEQUENCES, seed, image_size=32)
    noise = torch.randn(frames.images.shape, generator=torch.Generator().manual_seed(seed))
    images = (frames.images + 1.5 * noise).round().clamp(0, 255).byte()
    return dataclasses.replace(frames, images=images)


@pytest.fixture(scope="module")
def real():
    return noisy_frames(0)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "WIDTHS", (12, 16, 16))
        patch.setattr(two_sample, "BATCH", 16)
        patch.setattr(two_sample, "STEPS", 60)
        yield


@pytest.fixture
def hardly_trained(monkeypatch):
    """For claims that are not about the AUC."""
    monkeypatch.setattr(two_sample, "STEPS", 2)


@pytest.fixture(scope="module")
def of_other(real, small_network):
    """Frames of the same kind, with other objects elsewhere, in the position of generated ones."""
    frames = noisy_frames(1)
    centers = positions_of(frames)[frames.labels > 0]
    positions = torch.zeros(*real.labels.shape, 2)
    positions[real.labels > 0] = centers  # as many in each frame
    return compared(real, frames.images, positions, GrainEvaluator())


@pytest.fixture(scope="module")
def of_blurred(real, small_network):
    return compared(real, blurred(real.images), positions_of(real), GrainEvaluator())


@pytest.mark.slow
def test_every_figure_is_near_its_control_on_other_frames_of_the_same_kind(of_other):
    assert (of_other.num_frames, of_other.num_crops) == (3 * SEQUENCES, 6 * SEQUENCES)
    figures = of_other.images
    assert figures.keys() == of_other.crops.keys() == FIGURES
    assert figures["auc"].value == pytest.approx(0.5, abs=0.2)
    assert figures["auc"].control == pytest.approx(0.5, abs=0.2)
    for name, error in (("sharpness", 0.15), ("grain", 0.02)):
        assert figures[name].value == pytest.approx(1, abs=error)
        assert figures[name].control == pytest.approx(1, abs=error)


@pytest.mark.slow
def test_every_figure_leaves_its_control_on_slightly_blurred_frames(of_other, of_blurred):
    for part in ("images", "crops"):
        figures, undisturbed = getattr(of_blurred, part), getattr(of_other, part)
        assert figures["auc"].value > 0.7  # of a few steps; crops have 12 pixels a side
        assert figures["sharpness"].value < 0.9
        assert figures["grain"].value < 0.97
        for name in FIGURES:
            assert figures[name].control == undisturbed[name].control
        for name in ("frechet", "kernel"):
            assert figures[name].value > figures[name].control
            assert figures[name].value > 2 * abs(undisturbed[name].value)


def test_same_images_give_the_same_figures_whatever_was_sampled_before(real, hardly_trained):
    torch.manual_seed(1)
    one = fidelity(real.images, blurred(real.images), real.sequences, GrainEvaluator())
    state = torch.get_rng_state()
    two = fidelity(real.images, blurred(real.images), real.sequences, GrainEvaluator())
    assert one == two
    assert torch.equal(state, torch.get_rng_state())


def test_float_images_are_rounded_to_eight_bits(real, hardly_trained):
    of_float = fidelity(real.images, to_unit_range(real.images), real.sequences, GrainEvaluator())
    assert of_float == fidelity(real.images, real.images, real.sequences, GrainEvaluator())
    assert of_float.images["auc"].value == 0.5
    assert of_float.crops is None


def test_halves_hold_no_sequence_in_common(real, monkeypatch):
    frames = []

    def record(train, test, device):
        frames.append([{int(image[0, 0, 0]) for image in images} for images in (*train, *test)])
        return 0.5

    monkeypatch.setattr("iclevr_diffusion.evaluation.fidelity.two_sample_auc", record)
    marked = real.images.clone()
    marked[:, 0, 0, 0] = real.sequences.byte()
    fidelity(marked, marked, real.sequences, GrainEvaluator())
    (train_real, train_generated, test_real, test_generated), control = frames
    assert train_real == train_generated
    assert test_real == test_generated
    assert not train_real & test_real
    assert train_real | test_real == set(range(SEQUENCES))
    assert sum(map(len, control)) == len(set.union(*control)) == SEQUENCES


def test_wrong_sizes_and_too_few_sequences_are_refused(real):
    with pytest.raises(ValueError, match="a generated image and a sequence for each real frame"):
        fidelity(real.images, real.images[1:], real.sequences, GrainEvaluator())
    with pytest.raises(ValueError, match="at least 4 sequences"):
        fidelity(real.images[:9], real.images[:9], real.sequences[:9], GrainEvaluator())
    with pytest.raises(ValueError, match="needs images of both sets"):
        two_sample_auc((real.images, real.images[:0]), (real.images, real.images))


def numbered(size: int) -> Tensor:
    """(1, 3, size, size): each pixel's row and column."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([rows, columns, rows])[None].byte()


def test_a_crop_is_centred_on_its_object_and_repeats_the_edge():
    images, frame = numbered(64), torch.tensor([0, 0])
    middle_of_pixel = (torch.tensor([40, 2]) + 0.5) / 64 * 2 - 1  # x of column 40, y of row 2
    centers = torch.stack([torch.zeros(2), middle_of_pixel])
    middle, edge = crop(images, frame, centers)
    assert middle.shape == (3, 24, 24)
    assert middle[0, :, 0].tolist() == middle[1, 0].tolist() == list(range(20, 44))
    assert edge[1, 0].tolist() == list(range(28, 52))
    assert edge[0, :, 0].tolist() == [0] * 10 + list(range(14))


def test_on_the_floor_only_the_crop_is_seen():
    images, floor = numbered(64) + 1, torch.zeros(3, 64, 64, dtype=torch.uint8)
    frame, centers = torch.tensor([0]), torch.tensor([[0.5, -0.9]])
    shown = on_floor(images, frame, centers, floor)
    assert torch.equal(shown[shown > 0], images[0][shown[0] > 0])
    assert set((shown[0, 0] > 0).any(1).nonzero().flatten().tolist()) == set(range(15))
    assert set((shown[0, 0] > 0).any(0).nonzero().flatten().tolist()) == set(range(36, 60))


def test_objects_of_unknown_position_are_left_out(real, hardly_trained):
    positions = positions_of(real)
    positions[:30] = math.nan
    result = compared(real, real.images, positions, GrainEvaluator())
    assert result.num_crops == 6 * SEQUENCES - 60
    positions[:] = math.nan
    result = compared(real, real.images, positions, GrainEvaluator())
    assert (result.num_crops, result.crops) == (0, None)


def test_sharpness_is_the_mean_square_of_the_laplacian():
    image = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    image[:, :, 2, 2] = 255
    assert sharpness(image) == pytest.approx((16 + 4) / 9)


def test_grain_is_that_of_the_smooth_areas():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3, 64, 64, generator=generator)
    noise -= noise.mean()
    one, two = ((128 + scale * noise).round().byte() for scale in (10, 20))
    assert grain(two) / grain(one) == pytest.approx(2, rel=0.02)
    with_edge = two.clone()
    with_edge[..., 30:] //= 2
    assert grain(with_edge) < grain(two)


@pytest.mark.parametrize("size", [9, 24, 64])
def test_the_two_sample_network_reads_images_of_any_size(size):
    assert TwoSampleNet()(torch.zeros(2, 3, size, size)).shape == (2,)


def test_the_high_pass_of_a_flat_image_is_zero_up_to_the_border():
    assert high_pass(torch.full((1, 3, 6, 6), 0.7)).abs().max() < 1e-6


def tiny_net(inputs: str) -> ModelMixin:
    torch.manual_seed(0)
    if inputs == "headings":
        net = DetailNet(16, [8], [1], timesteps=20, positions=True, headings=True)
        net.noise_to_signal.copy_(NoiseSchedule(timesteps=20).noise_to_signal())
        return net
    return UViT(
        image_size=16,
        channels=[8],
        blocks=[1],
        width=8,
        depth=1,
        head_dim=8,
        object_tokens=3,
        patch_size=2,
        positions=inputs == "positions",
    )


def tiny_pipeline(inputs: str) -> DenoisingPipeline:
    schedule = NoiseSchedule(timesteps=20)
    denoiser = Denoiser(tiny_net(inputs).eval(), schedule, find_prediction("sample"))
    return DenoisingPipeline(denoiser, Sampler("ddpm", 2), (3, 16, 16))


@pytest.mark.parametrize("inputs", ["labels", "positions", "headings"])
def test_crops_are_compared_where_the_network_takes_positions(inputs, hardly_trained):
    frames = synthetic_frames(4, image_size=16)
    done = []
    result = pipeline_fidelity(tiny_pipeline(inputs), GrainEvaluator(), frames, 5, done.append)
    assert done == [5, 5, 2]
    assert result.num_frames == 12
    assert (result.num_crops > 0) == (inputs != "labels") == (result.crops is not None)
    whole = pipeline_fidelity(tiny_pipeline(inputs), GrainEvaluator(), frames, 64)
    assert whole == result


def test_held_out_frames_are_those_the_evaluator_did_not_train_on(tmp_path):
    source = Synthetic(60, image_size=16, cache=tmp_path)
    frames = source.load_frames()
    train, held_out = split_by_sequence(frames.sequences, HELD_OUT_SHARE)
    chosen = held_out_frames(source)
    assert torch.equal(chosen.images, frames.images[held_out])
    assert not set(chosen.names) & {frames.names[i] for i in train.tolist()}
    # Those that diffusion training holds out are among them.
    _, diffusion = split_by_sequence(frames.sequences, 0.02)
    assert set(diffusion.tolist()) < set(held_out.tolist())


class FromTheCourse(Synthetic):
    def description(self):
        return {"source": "iclevr"}


def test_fidelity_is_measured_on_the_courses_frames_unless_told_otherwise():
    drawn, few, real = Synthetic(100), FromTheCourse(20), FromTheCourse(100)
    assert [wants_fidelity("auto", source) for source in (None, drawn, few, real)] == [
        False,
        False,
        False,
        True,
    ]
    assert wants_fidelity(True, drawn)
    assert not wants_fidelity(False, real)
    with pytest.raises(UserError, match="fidelity=true needs frames to compare with"):
        wants_fidelity(True, None)
    with pytest.raises(UserError, match="fidelity=true needs 4 held-out sequences"):
        wants_fidelity(True, few)
    with pytest.raises(UserError, match="must be auto, true or false, got 'maybe'"):
        wants_fidelity("maybe", real)


def test_the_table_has_each_figure_with_its_control():
    values = dict.fromkeys(FIGURES, Controlled(0.25, 0.5))
    setting = SettingResult("ddpm 5 steps, guidance 1.5", "ddpm", 5, 1.5, 10, {})
    measured = dataclasses.replace(setting, fidelity=Fidelity(12, 0, values))
    evaluation = Evaluation("weights", "evaluator", {}, 1, [setting, measured])
    lines = fidelity_lines(evaluation)
    assert lines[-1] == (
        "| ddpm 5 | 1.5 | 12 images | 0.25 (0.5) | 250 (500) | 0.25 (0.5) | 0.25 (0.5) |"
        " 0.25 (0.5) |"
    )
    assert fidelity_lines(dataclasses.replace(evaluation, settings=[setting])) == []
    for length in (0.05, 0.1):
        options = {"spacing": "karras", "ema_length": length}
        evaluation.settings.append(dataclasses.replace(measured, options=options))
    starts = [line.split(" 12 images")[0] for line in fidelity_lines(evaluation)[-3:]]
    assert starts[0] == "| ddpm 5 | 1.5 | - |"
    assert starts[1:] == ["| ddpm 5 karras | 1.5 | 0.05 |", "| ddpm 5 karras | 1.5 | 0.1 |"]


@pytest.mark.slow
def test_a_slight_blur_of_real_frames_shows_in_distances_auc_sharpness(shared_data, monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 250)
    frames = real_frames(shared_data, 120)
    one, two = (frames.take(rows) for rows in torch.arange(len(frames)).chunk(2))
    # Not the packaged evaluator: one that has learned to read blurred frames may ignore the blur.
    untouched = fidelity(one.images, two.images, one.sequences, GrainEvaluator())
    blurry = compared(one, blurred(one.images), positions_of(one), GrainEvaluator())
    for part in ("images", "crops"):
        for name in ("frechet", "kernel"):
            assert getattr(blurry, part)[name].value > 3 * abs(getattr(blurry, part)[name].control)
        assert getattr(blurry, part)["auc"].value > 0.85
        assert getattr(blurry, part)["sharpness"].value < 0.9
    figures = untouched.images
    assert figures["auc"].value < 0.75
    assert figures["sharpness"].value == pytest.approx(1, abs=0.1)
    for name in ("frechet", "kernel"):
        assert blurry.images[name].value > 3 * abs(figures[name].value)


def real_frames(folder: Path, sequences: int) -> Frames:
    """The first sequences of three frames, from one array (sequences, 3, 64, 64, 3)."""
    with lzma.open(folder / "iclevr64.npy.xz") as file:  # the beginning alone is decompressed
        np.lib.format.read_magic(file)
        _, *shape = np.lib.format.read_array_header_1_0(file)[0]
        content = file.read(sequences * math.prod(shape))
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, *shape[1:])
    labels = json.loads((folder / "labels" / "train.json").read_text())
    names = [f"CLEVR_train_{i:06d}_{k}.png" for i in range(sequences) for k in range(shape[0])]
    return Frames(
        pixels.permute(0, 3, 1, 2).contiguous(),
        ICLEVR_LABELS.encode_all([labels[name] for name in names]),
        torch.arange(sequences).repeat_interleave(shape[0]),
        names,
    )
