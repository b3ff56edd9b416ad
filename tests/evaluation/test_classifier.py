import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from iclevr_diffusion.data.labels import COLORS, NUM_LABELS
from iclevr_diffusion.evaluation.classifier import (
    CourseEvaluator,
    ObjectEvaluator,
    load_evaluator,
    save_evaluator,
)
from iclevr_diffusion.evaluation.classifier_networks import (
    AttentionNet,
    ResidualNet,
    make_classifier,
)
from iclevr_diffusion.utils.errors import UserError


def course_net():
    torch.manual_seed(0)
    net = resnet18(weights=None)
    net.fc = nn.Sequential(nn.Linear(512, 24), nn.Sigmoid())
    return net.eval()


def test_file_in_the_courses_format_gives_its_scores(tmp_path):
    net = course_net()
    torch.save({"model": net.state_dict()}, tmp_path / "checkpoint.pth")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    evaluator = CourseEvaluator(tmp_path / "checkpoint.pth")
    scores, counts, features, unclear = evaluator(images)
    assert torch.equal(scores, net(images))
    assert torch.equal(net.fc(features), scores)
    assert counts is None
    assert unclear is None
    assert evaluator.name.startswith("a course ResNet18 (checkpoint.pth, sha256 ")
    assert not any(parameter.requires_grad for parameter in evaluator.parameters())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"weights": {}}, "is not the course's evaluator"),
        (lambda: {"model": {"fc.weight": torch.zeros(2)}}, "are not those of the course's"),
        (lambda: course_net(), "is not the course's evaluator"),  # a pickled object
    ],
)
def test_file_of_another_kind_is_refused(content, message, tmp_path):
    torch.save(content(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=message):
        CourseEvaluator(tmp_path / "other.pth")


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        CourseEvaluator(tmp_path / "missing.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="is not the course's evaluator"):
        CourseEvaluator(tmp_path / "broken.pth")


def test_unclear_colors_are_read_apart_from_the_labels(tmp_path):
    torch.manual_seed(0)
    net = ResidualNet([4, 4, 8], 8, unclear=True).eval()
    evaluator = ObjectEvaluator(save_evaluator(net, tmp_path / "mine.safetensors"))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    logits = (net(images)[0] + net(images.flip(3))[0]) / 2
    reading = evaluator(images)
    assert reading.scores.shape == (2, NUM_LABELS)
    assert reading.unclear.shape == (2, len(COLORS))
    both = torch.cat([reading.scores, reading.unclear], 1)
    assert torch.allclose(both, logits.sigmoid(), atol=1e-2)


def test_kinds_and_settings_that_make_no_classifier_are_refused():
    with pytest.raises(ValueError, match=r"^kind must be one of residual, attention; got 'dense'"):
        make_classifier("dense", None, None, False)
    with pytest.raises(ValueError, match="attention has no outputs"):
        make_classifier("attention", None, None, True)
    with pytest.raises(ValueError, match=r"^widths must be 4 numbers in 1..8192"):
        make_classifier("attention", [4, 4, 8], None, False)


@pytest.mark.parametrize("net", [ResidualNet([4, 4, 8], 8), AttentionNet([4, 4, 8, 8], 8)])
def test_own_evaluator_survives_its_file(net, tmp_path):
    net = net.eval()
    evaluator = ObjectEvaluator(save_evaluator(net, tmp_path / "mine.safetensors"))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    looks = zip(net(images), net(images.flip(3)), strict=True)
    logits, counts, features = ((one + two) / 2 for one, two in looks)
    reading = evaluator(images)
    assert torch.allclose(reading.scores, logits.sigmoid(), atol=1e-2)  # half precision
    assert torch.equal(reading.counts, counts.argmax(1))
    assert torch.allclose(reading.features, features, atol=1e-2)
    assert features.shape == (2, evaluator.num_features)
    assert load_evaluator(tmp_path / "mine.safetensors").name == evaluator.name


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_own_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is not an evaluator of this project"):
        load_evaluator(tmp_path / "other.safetensors")


def test_safetensors_of_something_else_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not an evaluator of this project"):
        load_evaluator(tmp_path / "other.safetensors")
