"""A classifier two-sample test: can a freshly trained network tell two sets of images apart?

After Lopez-Paz & Oquab 2017, arXiv 1610.06545. The test statistic is the area under the ROC curve
on images that the network was not trained on: 0.5 if the sets cannot be told apart, 1 if every
image of one set scores above every image of the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from iclevr_diffusion.data.types import to_unit_range
from iclevr_diffusion.utils.rng import keyed_generator, keyed_seed

WIDTHS = (24, 32, 48)
HIGH_PASS_GAIN = 10.0  # rendering noise has about 1 % of the range of the image
WINDOW = 32  # pixels on each side of a training window
BATCH = 32  # images per set
STEPS = 300
LEARNING_RATE = 3e-3
SEED = 0
TEST_BATCH = 256


class TwoSampleNet(nn.Module):
    """Three convolutions over the image and its high-pass, averaged over all positions.

    (B, 3, H, W) in [-1, 1], of any size → logits (B,), high for the second set. The high-pass is
    the image minus its 3×3 mean, in which grain and sharpness are most visible.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, stride = 6, 1
        for width in WIDTHS:
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels, stride = width, 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        inputs = torch.cat([images, HIGH_PASS_GAIN * high_pass(images)], dim=1)
        logits: Tensor = self.head(self.body(inputs).mean((2, 3))).squeeze(1)
        return logits


def high_pass(images: Tensor) -> Tensor:
    """Subtract from images (B, C, H, W) their 3×3 mean, with edge pixels repeated at the border."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return images - F.avg_pool2d(padded, 3, stride=1)


def two_sample_auc(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    device: torch.device | str = "cpu",
) -> float:
    """Train a :class:`TwoSampleNet` on two sets of images, and return its AUC on two others.

    Weights, order and windows depend on :data:`SEED` alone. There is no augmentation by flips or
    color: the light comes from one side, and a shift of color is a difference to detect.

    Args:
        train: uint8 images of the first and of the second set, (N, 3, H, W) and (M, 3, H, W).
        test: The same, without near copies of frames in ``train``.
        device: Where to train.

    Returns:
        The area under the ROC curve in [0, 1]; about 0.5 if the sets cannot be told apart.

    Raises:
        ValueError: One of the four sets is empty.
    """
    if not all(map(len, (*train, *test))):
        raise ValueError("the two-sample test needs images of both sets to train and to test on")
    net = _trained(train, torch.device(device))
    logits = [_logits(net, images) for images in test]
    targets = torch.cat([torch.full(part.shape, k) for k, part in enumerate(logits)])
    return float(binary_auroc(torch.cat(logits).double(), targets, thresholds=None))


def _trained(sets: tuple[Tensor, Tensor], device: torch.device) -> TwoSampleNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("two-sample", SEED))
        net = TwoSampleNet()
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    generator = keyed_generator("two-sample batches", SEED)
    targets = torch.arange(2.0, device=device).repeat_interleave(BATCH)
    for _ in range(STEPS):
        batch = to_unit_range(_batch(sets, generator).to(device))
        loss = F.binary_cross_entropy_with_logits(net(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def _batch(sets: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Sample :data:`BATCH` images of each set, cropped to one random window if they are larger.

    Both sets share the window, so its position does not reveal the set.
    """
    chosen = torch.cat(
        [images[torch.randint(len(images), (BATCH,), generator=generator)] for images in sets]
    )
    for dim in (2, 3):
        room = chosen.shape[dim] - WINDOW
        if room > 0:
            start = int(torch.randint(room + 1, (), generator=generator))
            chosen = chosen.narrow(dim, start, WINDOW)
    return chosen


@torch.no_grad()
def _logits(net: TwoSampleNet, images: Tensor) -> Tensor:
    device = net.head.weight.device
    return torch.cat(
        [net(to_unit_range(part.to(device))).cpu() for part in images.split(TEST_BATCH)]
    )
