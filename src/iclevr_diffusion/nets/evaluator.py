"""Classifiers that say which objects a picture shows, and how many."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from iclevr_diffusion.errors import UserError
from iclevr_diffusion.files import written_whole
from iclevr_diffusion.labels import NUM_LABELS
from iclevr_diffusion.nets.classifiers import Classifier, describe_classifier, make_classifier
from iclevr_diffusion.nets.weights import (
    check_finite,
    fill,
    load_pickle,
    load_tensors,
    nothing_allocated,
)

PACKAGED = Path(__file__).with_name("evaluator.safetensors")
PACKAGED_SECOND = Path(__file__).with_name("second_evaluator.safetensors")
IMAGE_SIZE = 64
# The git blob of the checkpoint.pth that the course hands out, as public copies of it have.
COURSE_BLOB = "ff70bd18a0c247595d56a8168cac7adcd61333e6"


class Reading(NamedTuple):
    """What an evaluator sees in B pictures.

    scores: float32, (B, L), in [0, 1]; above one half it sees an object of that label.
    counts: int64, (B,), how many objects, where two of one label are two; None: it cannot count.
    features: float32, (B, F), what it makes of the pictures before it names objects.
    unclear: float32, (B, 8), in [0, 1]; above one half it sees an object of that color (in the
        order of ``labels.COLORS``) that is clearly none of the three shapes. Such an object has no
        label above one half. None: it always takes an object for one of the shapes.
    """

    scores: Tensor
    counts: Tensor | None
    features: Tensor
    unclear: Tensor | None = None


class Evaluator(nn.Module):
    """``evaluator(images)``: (B, 3, H, W) in [-1, 1] → :class:`Reading`.

    Pictures of another size than 64×64 are resized first.
    """

    name: str  # which evaluator scored it: it stands in every output
    num_features: int
    max_count: int  # it counts no further; 0: it does not count
    says_unclear = False  # whether its readings say which objects have no clear shape

    @property
    def device(self) -> torch.device:
        return next(self.parameters(), torch.empty(0)).device

    def forward(self, images: Tensor) -> Reading:
        """Read the pictures.

        Raises:
            ValueError: they have another shape, or a value is NaN or outside [-1, 1].
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "the evaluator reads float pictures (B, 3, H, W),"
                f" got {images.dtype} {tuple(images.shape)}"
            )
        # NaN fails every comparison.
        if not (images.abs() <= 1).all():
            raise ValueError("the evaluator reads pictures in [-1, 1]; these hold NaN or more")
        images = images.float()
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(
                images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True
            )
        if not len(images):  # a process may have no share; not every layer takes nothing
            one = self.read(images.new_zeros(1, *images.shape[1:]))
            return Reading(*(None if part is None else part[:0] for part in one))  # type: ignore[arg-type]
        return self.read(images)

    def read(self, images: Tensor) -> Reading:
        """As :meth:`forward`, for float32 pictures (B, 3, 64, 64) that were checked."""
        raise NotImplementedError


class CourseEvaluator(Evaluator):
    """The course's ResNet18 with 24 sigmoid outputs. It does not count.

    Args:
        checkpoint: the course's ``checkpoint.pth``, or another state dict of that network under the
            key ``model``.

    Raises:
        UserError: there is no such file, or it holds something else.
    """

    num_features = 512
    max_count = 0

    def __init__(self, checkpoint: str | Path) -> None:
        super().__init__()
        path = Path(checkpoint)
        resnet = resnet18(weights=None)
        resnet.fc = nn.Sequential(nn.Linear(512, NUM_LABELS), nn.Sigmoid())
        resnet.load_state_dict(_course_state(path, resnet.state_dict()))
        self.resnet = create_feature_extractor(
            resnet.eval(), {"flatten": "features", "fc": "scores"}
        )
        self.eval().requires_grad_(False)
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        kind = "the course's evaluator" if blob.hexdigest() == COURSE_BLOB else "a course ResNet18"
        self.name = f"{kind} ({path.name}, sha256 {_short_hash(content)})"

    def read(self, images: Tensor) -> Reading:
        outputs = self.resnet(images)
        return Reading(outputs["scores"], None, outputs["features"])


class ObjectEvaluator(Evaluator):
    """This project's own evaluator.

    Args:
        file: a safetensors file as :func:`save_evaluator` writes it.

    Raises:
        UserError: there is no such file, or it holds something else.
    """

    max_count = 5  # as many as the pictures it learned from hold at most

    def __init__(self, file: str | Path = PACKAGED) -> None:
        super().__init__()
        path = Path(file)
        if not path.is_file():
            raise UserError(f"evaluator.checkpoint: there is no file {path}")
        try:
            tensors, metadata = load_tensors(path)
            settings = json.loads(metadata["object_net"])
            state = {key: value.float() for key, value in tensors.items()}
            with nothing_allocated():  # a stranger's file decides how large it is
                # Files of version 0.1.0 do not name the kind.
                self.net = make_classifier(
                    settings.get("kind", "object"),
                    settings["widths"],
                    settings["hidden"],
                    settings.get("unclear", False),
                )
            fill(self.net, state)
        except Exception as error:  # whatever a foreign file makes the readers raise
            raise UserError(
                f"evaluator.checkpoint: {path} is not an evaluator of this project"
                f" (safetensors from train_evaluator): {_one_line(error)}"
            ) from error
        self.num_features, self.says_unclear = self.net.hidden, self.net.unclear
        self.eval().requires_grad_(False)
        packaged = {
            PACKAGED: "iclevr-diffusion's own evaluator",
            PACKAGED_SECOND: "iclevr-diffusion's second evaluator",
        }
        own = packaged.get(path, f"own evaluator {path.name}")
        self.name = f"{own} (sha256 {_short_hash(path.read_bytes())})"

    def read(self, images: Tensor) -> Reading:
        # Each picture and its mirror image: the mean of two looks errs less often.
        labels, counts, features = (
            torch.stack(looks.chunk(2)).mean(0)
            for looks in self.net(torch.cat((images, images.flip(3))))
        )
        scores = labels.sigmoid()
        return Reading(
            scores[:, :NUM_LABELS],
            counts.argmax(1),
            features,
            scores[:, NUM_LABELS:] if self.net.unclear else None,
        )


def save_evaluator(net: Classifier, path: Path) -> Path:
    """Write the network in half precision as safetensors: whole, or not at all."""
    state = {
        key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in net.state_dict().items()
    }
    with written_whole(path) as partial:
        save_file(state, partial, metadata={"object_net": json.dumps(describe_classifier(net))})
    return path


def load_second_evaluator() -> Evaluator:
    """The packaged evaluator that has chosen nothing, to show beside the one that chooses.

    It was trained on real frames alone, with another architecture and another seed.
    """
    return ObjectEvaluator(PACKAGED_SECOND)


def load_evaluator(checkpoint: str | Path | None) -> Evaluator:
    """The evaluator in a file: ``.safetensors`` is one of ours, another the course's; None: ours.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if checkpoint is None:
        return ObjectEvaluator()
    path = Path(checkpoint).expanduser()
    return ObjectEvaluator(path) if path.suffix == ".safetensors" else CourseEvaluator(path)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _course_state(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"evaluator.checkpoint: there is no file {path}")
    try:
        content = load_pickle(path)
        if not isinstance(content, dict):
            raise TypeError("not a dict")
        state = content["model"]
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
    try:
        check_finite(state)
    except ValueError as error:
        raise UserError(f"evaluator.checkpoint: {path}: {error}") from None
    return dict(state)
