import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.nets.evaluator import (
    CourseEvaluator,
    ObjectEvaluator,
    ObjectNet,
    load_evaluator,
    save_evaluator,
)


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
    scores, counts, features = evaluator(images)
    assert torch.equal(scores, net(images))
    assert torch.equal(net.fc(features), scores)
    assert counts is None
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


def test_own_evaluator_survives_its_file(tmp_path):
    torch.manual_seed(0)
    net = ObjectNet([4, 4, 8], 8).eval()
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
