"""Evaluators: classifiers of the objects in an image, which also count them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from iclevr_diffusion.data.labels import ICLEVR_LABELS, NUM_LABELS, Vocabulary
from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.evaluation.classifier_networks import (
    Classifier,
    describe_classifier,
    make_classifier,
)
from iclevr_diffusion.evaluation.classifier_output import ClassifierOutput
from iclevr_diffusion.evaluation.course_checkpoint import is_course_file, load_course_network
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import atomic_path
from iclevr_diffusion.utils.text import one_line
from iclevr_diffusion.utils.weights import fill, load_tensors, nothing_allocated

PACKAGED = Path(__file__).with_name("evaluator.safetensors")
PACKAGED_SECOND = Path(__file__).with_name("second_evaluator.safetensors")
IMAGE_SIZE = 64
COURSE_EVALUATOR = "the course's evaluator"  # how its name begins
CHUNK = 128  # images per batch; they do not depend on each other


class Evaluator(nn.Module):
    """``evaluator(images)``: (B, 3, H, W) in [-1, 1] → :class:`ClassifierOutput`.

    Images of another size than 64×64 are resized first.

    Attributes:
        name: Identifies the evaluator; it is part of every result.
        vocabulary: L labels, in the order of the scores.
        num_features: F.
        max_count: The largest number of objects it counts; 0 if it does not count.
    """

    name: str
    vocabulary: Vocabulary = ICLEVR_LABELS
    num_features: int
    max_count: int

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU without any."""
        return next(self.parameters(), torch.empty(0)).device

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Check the images, resize them to 64×64, and classify them.

        Raises:
            ValueError: They have another shape, or a value is NaN or outside [-1, 1]; or the output
                is not that of a :class:`ClassifierOutput`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "the evaluator takes float images (B, 3, H, W),"
                f" got {images.dtype} {tuple(images.shape)}"
            )
        # NaN fails every comparison.
        if not (images.abs() <= 1).all():
            raise ValueError(
                "the evaluator takes images in [-1, 1]; these have NaN or larger values"
            )
        images = images.float()
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(
                images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True
            )
        if not len(images):  # a process may have no share, and not every layer takes empty batches
            one = self.classify(images.new_zeros(1, *images.shape[1:]))
            return ClassifierOutput(*(None if part is None else part[:0] for part in one))  # type: ignore[arg-type]
        output = self.classify(images)
        wanted = len(images), len(self.vocabulary)
        scores = output.scores
        if scores.shape != wanted or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(
                f"{type(self).__name__}: scores must be {wanted}, in [0, 1]; got"
                f" {tuple(scores.shape)}, in [{scores.min():g}, {scores.max():g}]"
            )
        if (output.counts is None) != (self.max_count == 0):
            raise ValueError(
                f"{type(self).__name__}: counts must be None if max_count is 0, and only then"
            )
        return output

    def classify(self, images: Tensor) -> ClassifierOutput:
        """Classify float32 images (B, 3, 64, 64) in [-1, 1]; subclasses implement this."""
        raise NotImplementedError


class CourseEvaluator(Evaluator):
    """The course's ResNet18 with 24 sigmoid outputs. It does not count.

    Files are read by :func:`~.course_checkpoint.load_course_network`.

    Raises:
        UserError: The file does not exist or holds something else.
    """

    num_features = 512
    max_count = 0

    def __init__(self, checkpoint: str | Path) -> None:
        super().__init__()
        path = Path(checkpoint)
        self.resnet = load_course_network(path)
        self.eval().requires_grad_(False)
        content = path.read_bytes()
        who = COURSE_EVALUATOR if is_course_file(content) else "a course ResNet18"
        self.name = f"{who} ({path.name}, sha256 {_short_hash(content)})"

    def classify(self, images: Tensor) -> ClassifierOutput:
        outputs = self.resnet(images)
        return ClassifierOutput(outputs["scores"], None, outputs["features"])


class ObjectEvaluator(Evaluator):
    """This project's own evaluator, as written by :func:`save_evaluator`.

    Raises:
        UserError: The file does not exist or holds something else.
    """

    max_count = 5  # the most objects in the images it was trained on

    def __init__(self, file: str | Path = PACKAGED) -> None:
        super().__init__()
        path = Path(file)
        if not path.is_file():
            raise UserError(f"evaluator.checkpoint: there is no file {path}")
        try:
            tensors, metadata = load_tensors(path)
            settings = json.loads(metadata["object_net"])
            state = {key: value.float() for key, value in tensors.items()}
            with nothing_allocated():  # a foreign file decides on the size
                self.net = make_classifier(
                    settings["kind"], settings["widths"], settings["hidden"], settings["unclear"]
                )
            fill(self.net, state)
        except Exception as error:  # a foreign file can raise anything
            raise UserError(
                f"evaluator.checkpoint: {path} is not an evaluator of this project"
                f" (safetensors from train_evaluator): {one_line(error, 160)}"
            ) from error
        self.num_features = self.net.hidden
        self.eval().requires_grad_(False)
        packaged = {
            PACKAGED: "iclevr-diffusion's own evaluator",
            PACKAGED_SECOND: "iclevr-diffusion's second evaluator",
        }
        own = packaged.get(path, f"own evaluator {path.name}")
        self.name = f"{own} (sha256 {_short_hash(path.read_bytes())})"

    def classify(self, images: Tensor) -> ClassifierOutput:
        # Averaged over each image and its mirror image, which makes fewer errors.
        labels, counts, features = (
            torch.stack(outputs.chunk(2)).mean(0)
            for outputs in self.net(torch.cat((images, images.flip(3))))
        )
        scores = labels.sigmoid()
        return ClassifierOutput(
            scores[:, :NUM_LABELS],
            counts.argmax(1),
            features,
            scores[:, NUM_LABELS:] if self.net.unclear else None,
        )


def classify(evaluator: Evaluator, images: Tensor) -> ClassifierOutput:
    """Classify any number of images, (N, 3, H, W) in [-1, 1], in batches.

    Raises:
        ValueError: A value is NaN or outside [-1, 1].
    """
    return _joined(map(evaluator, images.split(CHUNK)))


@torch.no_grad()
def classify_frames(evaluator: Evaluator, frames: Tensor) -> ClassifierOutput:
    """Classify any number of frames, uint8 (N, 3, H, W), in batches on the evaluator's device."""
    device = evaluator.device
    return _joined(evaluator(to_unit_range(part.to(device))) for part in frames.split(CHUNK))


def _joined(outputs: Iterable[ClassifierOutput]) -> ClassifierOutput:
    parts = zip(*outputs, strict=True)
    return ClassifierOutput(*(None if part[0] is None else torch.cat(part) for part in parts))  # type: ignore[arg-type]


def save_evaluator(net: Classifier, path: Path) -> Path:
    """Write the network atomically, as safetensors in half precision."""
    state = {
        key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.cpu()
        for key, value in net.state_dict().items()
    }
    with atomic_path(path) as partial:
        save_file(state, partial, metadata={"object_net": json.dumps(describe_classifier(net))})
    return path


def load_second_evaluator() -> Evaluator:
    """Load the packaged second evaluator, which is only reported and chooses nothing.

    It was trained on real frames alone, with another architecture and another seed.
    """
    return ObjectEvaluator(PACKAGED_SECOND)


def second_evaluator(vocabulary: Vocabulary) -> Evaluator | None:
    """Return the packaged second evaluator; None for other labels than i-CLEVR's."""
    return load_second_evaluator() if vocabulary == ICLEVR_LABELS else None


def check_vocabulary(evaluator: Evaluator, vocabulary: Vocabulary, whose: str) -> None:
    """Check that an evaluator classifies the labels of a vocabulary, which is ``whose``.

    Raises:
        UserError: It classifies others.
    """
    if evaluator.vocabulary != vocabulary:
        raise UserError(
            f"evaluator: {evaluator.name} does not classify the labels of {whose}; name one that"
            " does with evaluator._target_=…"
        )


def load_evaluator(checkpoint: str | Path | None = None) -> Evaluator:
    """Load an evaluator.

    Args:
        checkpoint: ``.safetensors`` is one of this project's, any other file the course's; None is
            the packaged one.

    Raises:
        UserError: The file does not exist or holds something else.
    """
    if checkpoint is None:
        return ObjectEvaluator()
    path = Path(checkpoint).expanduser()
    return ObjectEvaluator(path) if path.suffix == ".safetensors" else CourseEvaluator(path)


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
