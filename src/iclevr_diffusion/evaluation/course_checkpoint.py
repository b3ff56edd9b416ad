"""The checkpoint of the course's evaluator: a ResNet18 with 24 sigmoid outputs."""

import hashlib
from pathlib import Path

from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.weights import check_finite, load_pickle, shapes

# The git blob of the checkpoint.pth that the course hands out, as in public copies of it.
COURSE_BLOB = "ff70bd18a0c247595d56a8168cac7adcd61333e6"


def load_course_network(path: Path) -> nn.Module:
    """Load the course's network: images → ``features`` (B, 512) and ``scores`` (B, L).

    Args:
        path: The course's ``checkpoint.pth``, or another state dict of that network under the key
            ``model``.

    Raises:
        UserError: The file does not exist or holds something else.
    """
    resnet = resnet18(weights=None)
    resnet.fc = nn.Sequential(nn.Linear(512, NUM_LABELS), nn.Sigmoid())
    resnet.load_state_dict(_state(path, resnet.state_dict()))
    outputs = {"flatten": "features", "fc": "scores"}
    network: nn.Module = create_feature_extractor(resnet.eval(), outputs)
    return network


def is_course_file(content: bytes) -> bool:
    """Return whether a checkpoint is the one that the course distributes."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return blob.hexdigest() == COURSE_BLOB


def _state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"evaluator.checkpoint: there is no file {path}")
    try:
        content = load_pickle(path)
        if not isinstance(content, dict):
            raise TypeError("not a dict")
        state = content["model"]
        found = shapes(state)
    except Exception as error:  # a foreign file can raise anything
        raise UserError(
            f"evaluator.checkpoint: {path} is not the course's evaluator"
            f" (a state dict under 'model'): {type(error).__name__}"
        ) from error
    if found != shapes(expected):
        raise UserError(
            f"evaluator.checkpoint: the weights in {path} are not those of the course's ResNet18"
        )
    try:
        check_finite(state)
    except ValueError as error:
        raise UserError(f"evaluator.checkpoint: {path}: {error}") from None
    return dict(state)
