"""Synthetic frames with shapes between cube, sphere and cylinder."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from iclevr_diffusion.data.labels import NUM_LABELS
from iclevr_diffusion.data.synthetic.dataset import STEPS, render_side_by_side
from iclevr_diffusion.data.synthetic.raycast import ROUNDED_CUBE, SUPERQUADRIC
from iclevr_diffusion.data.synthetic.scenes import sample_scenes, uniform
from iclevr_diffusion.data.types import Frames
from iclevr_diffusion.data.unclear.targets import NUM_OUTPUTS

STREAM = 100  # of the random numbers; scenes.py uses the first ones
# Exponents p and q of superquadrics, and radii of rounded cubes, that leave no clear shape at
# 8 to 22 pixels: between cube and cylinder, cylinder and sphere, cube and sphere, and all three.
IN_BETWEEN = (
    ((2.6, 6.0), (8.0, 30.0)),
    ((2.0, 2.0), (2.6, 6.0)),
    ((2.6, 6.0), (2.6, 6.0)),
    ((2.6, 8.0), (2.4, 4.0)),
)
RADII = (0.4, 0.8)  # of a rounded cube's edges, as a share of half its width


def shapes_in_between(sequences: int, seed: int, image_size: int = 64) -> Frames:
    """Render frames in which about half of the objects are superquadrics or rounded cubes."""
    index = torch.arange(sequences)
    scenes = sample_scenes(seed, index, STEPS, huddled=True)
    numbers = uniform(seed, STREAM, index, 4 * STEPS).view(-1, 4)
    kinds = len(IN_BETWEEN) + 1
    kind = (numbers[:, 1] * kinds).long()
    low, high = (
        torch.tensor([[limits[end] for limits in form] for form in IN_BETWEEN] + [[RADII[end]] * 2])
        for end in (0, 1)
    )
    # Equal steps of the logarithm: exponents of 3 and 6 differ as much as 6 and 12.
    form = low[kind] * (high / low)[kind] ** numbers[:, 2:]
    is_unclear = numbers[:, 0] < 0.5
    other = torch.where(kind == len(IN_BETWEEN), ROUNDED_CUBE, SUPERQUADRIC)
    shape = torch.where(is_unclear, other, scenes.solids.shape)
    solids = replace(scenes.solids, shape=shape, form=form)
    images = render_side_by_side(replace(scenes, solids=solids), image_size)
    color = scenes.color
    entry = torch.where(is_unclear.view_as(color), NUM_LABELS + color, scenes.labels())
    return Frames(
        images.flatten(0, 1),
        F.one_hot(entry, NUM_OUTPUTS).float().cumsum(1).flatten(0, 1),
        index.repeat_interleave(STEPS),
        [f"in_between_{i:06d}_{step}.png" for i in range(sequences) for step in range(STEPS)],
    )
