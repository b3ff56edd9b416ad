"""Random numbers as a function of a key, so that no run depends on what was drawn before.

A training step draws from ``keyed_generator(seed, "train", epoch, batch)``: a resumed run, or the
same global batch split over several processes, sees the same numbers as an unbroken single one.
"""

import hashlib

import torch
from torch import Tensor


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on ``device`` whose state is a function of ``key`` alone."""
    return torch.Generator(device).manual_seed(keyed_seed(*key))


def keyed_seed(*key: int | str) -> int:
    """A seed of 63 bits that is a function of ``key`` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def image_generators(seed: int, indices: range | list[int], stream: str) -> list[torch.Generator]:
    """One CPU generator an image, keyed by (stream, seed, index).

    Image i looks the same whatever the batch, the process or the device that draws it.
    """
    return [keyed_generator(stream, seed, index) for index in indices]


def randn(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Standard normal numbers, float32, (len(generators), *shape), on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
