"""Random numbers as functions of a key, independent of what was sampled before.

A training step uses ``keyed_generator("train", seed, epoch, batch)``: a resumed run, or the same
global batch divided among several processes, has the same numbers as an uninterrupted single one.
"""

import hashlib

import torch
from torch import Tensor


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Create a generator on ``device`` whose state is a function of ``key`` alone."""
    return torch.Generator(device).manual_seed(keyed_seed(*key))


def keyed_seed(*key: int | str) -> int:
    """Return a seed of 63 bits that is a function of ``key`` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def image_generators(seed: int, indices: range | list[int], stream: str) -> list[torch.Generator]:
    """Create one CPU generator per image, keyed by (stream, seed, index).

    Image i is the same in any batch, process and device.
    """
    return [keyed_generator(stream, seed, index) for index in indices]


def randn(shape: tuple[int, ...], generators: list[torch.Generator]) -> Tensor:
    """Sample standard normal numbers, float32, (len(generators), *shape), on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
