"""An optimizer step is a mean over the images that it saw, however they were batched."""

from multiprocessing import get_context

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from helpers import RandomFrames, slow, tiny_module, trainer
from iclevr_diffusion.data.types import Batch
from iclevr_diffusion.training.diffusion import TrainingNoise


class Gradients(L.Callback):
    """Keeps each optimizer step's gradient and norm, and leaves them in a file."""

    def __init__(self, path):
        self.path, self.flat, self.norms = path, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > len(self.flat):
            weights = [p.grad.flatten() for p in pl_module.net.parameters()]
            self.flat.append(torch.cat(weights))
            self.norms.append(float(pl_module.grad_norm))

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            torch.save((self.flat, self.norms), self.path)


class Batches(L.LightningDataModule):
    """The first images of a source, in batches of given sizes in each process."""

    train_indices = None

    def __init__(self, sizes):
        super().__init__()
        self.frames, self.sizes = RandomFrames().load_frames(), sizes

    def setup(self, stage):
        self.rank, self.world_size = self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self):
        indices = torch.arange(sum(self.sizes) * self.world_size)
        parts = indices[self.rank :: self.world_size].split(self.sizes)
        batches = [Batch(self.frames.images[i], self.frames.labels[i], i, None) for i in parts]
        return DataLoader(batches, batch_size=None)


def module_whose_noise_depends_on_the_image_alone(**optimizer):
    """So that images train alike in whichever batch they are."""
    module = tiny_module(label_drop=0.0, clip_norm=None, name="adam", lr=1e-9, **optimizer)

    def draw(x0, epoch, batch_idx):
        seeds = [int(image.abs().sum() * 1e4) for image in x0]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators])
        timesteps = torch.cat([torch.randint(50, (1,), generator=g) for g in generators])
        return TrainingNoise(timesteps, noise, torch.ones(len(x0), 1))

    module.noise_for_batch = draw
    return module


def gradients(folder, sizes, accumulate, **settings):
    """The gradient of each optimizer step, and their norms."""
    path = folder / "gradients.pt"
    run = trainer(folder, [Gradients(path)], accumulate_grad_batches=accumulate, **settings)
    run.fit(module_whose_noise_depends_on_the_image_alone(), Batches(sizes))
    return torch.load(path)


@pytest.mark.parametrize(
    ("sizes", "accumulate", "whole"),
    [
        ([4, 4, 4], 2, [8, 4]),  # a short last step
        ([3, 3], 5, [6]),  # not one full step
        ([4, 4, 4, 2], 2, [8, 6]),  # a short last batch
        *slow(([4, 4, 4, 4, 4], 4, [16, 4]), ([4, 1], 1, [4, 1]), ([5, 5, 2], 2, [10, 2])),
    ],
)
def test_step_is_the_mean_over_its_images(tmp_path, sizes, accumulate, whole):
    assert_same(gradients(tmp_path, sizes, accumulate), gradients(tmp_path, whole, 1), len(whole))


def assert_same(ours, theirs, steps):
    assert len(ours[0]) == len(theirs[0]) == steps
    for gradient, expected in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "whole"), [([2, 2, 2], [8, 4]), ([2, 2, 2, 1], [8, 6])])
def test_step_of_two_processes_is_the_mean_over_their_images(tmp_path, sizes, whole):
    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    # In a new process, since one whose autograd has begun threads must not fork.
    arguments = (tmp_path, sizes, 2)
    process = get_context("spawn").Process(target=gradients, args=arguments, kwargs=settings)
    process.start()
    process.join()
    assert process.exitcode == 0
    two = torch.load(tmp_path / "gradients.pt")
    assert_same(two, gradients(tmp_path, whole, 1), len(whole))


@pytest.mark.parametrize("accumulate", [2, 7])
def test_step_of_one_batch_is_the_same_however_many_were_asked_for(tmp_path, accumulate):
    settings = {"limit_train_batches": 1}
    assert_same(gradients(tmp_path, [4, 4], accumulate, **settings), gradients(tmp_path, [4], 1), 1)
