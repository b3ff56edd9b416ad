"""Draw images of given labels."""

from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import Tensor

from iclevr_diffusion.cli.command import refuse_several, user_settings
from iclevr_diffusion.cli.instantiate import sampling_settings
from iclevr_diffusion.cli.output_dir import output_folder, refuse_overwriting
from iclevr_diffusion.data.labels import INDEX, NUM_LABELS, LabelSet, check, encode, parse
from iclevr_diffusion.diffusion.io import load_model
from iclevr_diffusion.diffusion.pipeline import refuse_nan
from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.evaluation.image_grid import Strip, grid, save_image
from iclevr_diffusion.models.layout import CLEAR
from iclevr_diffusion.models.protocol import position_prior
from iclevr_diffusion.utils.environment import choose_device
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.progress_bar import progress
from iclevr_diffusion.utils.rng import image_generators

MAX_IMAGES = 1024


def run(cfg: DictConfig) -> None:
    with user_settings():
        refuse_several()
        label_set = parse(cfg.labels) if isinstance(cfg.labels, str) else check(cfg.labels)
        if not 1 <= cfg.n <= MAX_IMAGES:
            raise UserError(f"n must be in 1..{MAX_IMAGES}, got {cfg.n}")
        refuse_overwriting(cfg.out, "grid.png", *(["strip.png"] if cfg.strip else []))
        positions = None if cfg.positions is None else positions_of(cfg.positions, label_set)
        if positions is not None and cfg.layout != CLEAR:
            raise UserError(f"layout={cfg.layout} chooses positions, which are given: leave it out")
        model = load_model(cfg.weights)
        pipeline = model.pipeline(**sampling_settings(cfg.sampler, cfg.guidance), layout=cfg.layout)
        if positions is not None:
            positions = as_trained_on(positions, model).expand(cfg.n, -1, -1)
        device = choose_device(cfg.device)
    model = model.to(device)
    strip = Strip(pipeline.steps)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/sample") as out:
        with progress(cfg.n * pipeline.steps, "denoising step") as bar:

            def on_step(step: Step) -> None:
                bar.update(len(step.x0))
                if cfg.strip:
                    strip(step)

            images = pipeline(
                encode(label_set).expand(cfg.n, -1).to(device),
                image_generators(cfg.seed, range(cfg.n), "sample"),
                on_step,
                positions=positions,
            )
        refuse_nan(images)
        print(save_image(grid(images, columns=min(8, cfg.n)), out / "grid.png"))
        if cfg.strip:
            print(save_image(strip.image(), out / "strip.png"))
    how = f"{pipeline}" if positions is None else f"{pipeline.without_layout}, positions as given"
    print(f"{', '.join(label_set)}: {cfg.n} images, {how}, seed {cfg.seed}")


def positions_of(pairs: Sequence[Sequence[float]], label_set: LabelSet) -> Tensor:
    """Positions (L, 2) from pairs in the order of the label set; 0 where no label is.

    Raises:
        UserError: there is not one pair for each label, or a number is outside [-1, 1].
    """
    if len(pairs) != len(label_set):
        raise UserError(
            f"positions: {len(label_set)} labels need as many pairs [x, y], got {len(pairs)}"
        )
    result = torch.zeros(NUM_LABELS, 2)
    for name, pair in zip(label_set, pairs, strict=True):
        if len(pair) != 2:
            raise UserError(f"positions: {name} needs two numbers, [x, y]; got {len(pair)}")
        if not all(-1 <= value <= 1 for value in pair):
            raise UserError(f"positions: {name} must be in [-1, 1], got {list(pair)}")
        result[INDEX[name]] = torch.tensor(list(pair))
    return result


def as_trained_on(positions: Tensor, model: Model | GAN) -> Tensor:
    """The nearest positions, (L, 2), of those that the network's training frames have.

    Raises:
        UserError: the network takes no positions.
    """
    prior = position_prior(model.net) if isinstance(model, Model) else None  # type: ignore[arg-type]
    if prior is None:
        raise UserError("positions: these weights take no positions; leave them out")
    return prior.snap(positions)
