import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.nets.evaluator import CourseEvaluator


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
    assert torch.equal(evaluator(images), net(images))
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
