"""Classifiers that say which objects a picture shows."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.labels import NUM_LABELS


class CourseEvaluator(nn.Module):
    """The course's ResNet18 with 24 sigmoid outputs.

    ``evaluator(images)``: (B, 3, 64, 64) in [-1, 1] → (B, L) in [0, 1].

    Args:
        checkpoint: the course's ``checkpoint.pth``: a state dict under the key ``model``.

    Raises:
        UserError: there is no such file, or it holds something else.
    """

    name = "course"

    def __init__(self, checkpoint: str | Path) -> None:
        super().__init__()
        self.resnet = resnet18(weights=None)
        self.resnet.fc = nn.Sequential(nn.Linear(512, NUM_LABELS), nn.Sigmoid())
        self.resnet.load_state_dict(_course_state(Path(checkpoint), self.resnet.state_dict()))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.resnet(images)
        return scores


def _course_state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"evaluator.checkpoint: there is no file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        shapes = {key: value.shape for key, value in state.items()}
    except Exception as error:  # whatever a foreign file makes the reader raise
        raise UserError(
            f"evaluator.checkpoint: {path} is not the course's evaluator"
            f" (a state dict under 'model'): {type(error).__name__}"
        ) from error
    if shapes != {key: value.shape for key, value in expected.items()}:
        raise UserError(
            f"evaluator.checkpoint: the weights in {path} are not those of the course's ResNet18"
        )
    return dict(state)
