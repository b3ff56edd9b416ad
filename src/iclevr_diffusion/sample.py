"""Draw: ``python -m iclevr_diffusion.sample labels='red cube, blue sphere' n=8``."""

import re
import sys

from omegaconf import DictConfig

from iclevr_diffusion import build
from iclevr_diffusion.door import door, refuse_sweep, user_settings
from iclevr_diffusion.errors import UserError
from iclevr_diffusion.evaluation import refuse_nan
from iclevr_diffusion.export import load_model
from iclevr_diffusion.labels import check, encode, parse
from iclevr_diffusion.outputs import output_folder
from iclevr_diffusion.pictures import Strip, grid, save_picture
from iclevr_diffusion.rng import image_generators
from iclevr_diffusion.settings import Sample

MAX_PICTURES = 1024


@door("sample", Sample)
def main(cfg: DictConfig) -> None:
    with user_settings():
        refuse_sweep()
        label_set = parse(cfg.labels) if isinstance(cfg.labels, str) else check(cfg.labels)
        if not 1 <= cfg.n <= MAX_PICTURES:
            raise UserError(f"n must be in 1..{MAX_PICTURES}, got {cfg.n}")
        model = load_model(cfg.weights)
        draw = model.drawer(**build.drawing(cfg.sampler, cfg.guidance))
        device = build.choose_device(cfg.device)
    model = model.to(device)
    strip = Strip(draw.steps)
    with output_folder(cfg.out, f"{cfg.paths.outputs}/sample") as out:
        images = draw(
            encode(label_set).expand(cfg.n, -1).to(device),
            image_generators(cfg.seed, range(cfg.n), "sample"),
            strip if cfg.strip else None,
        )
        refuse_nan(images)
        print(save_picture(grid(images, columns=min(8, cfg.n)), out / "grid.png"))
        if cfg.strip:
            print(save_picture(strip.picture(), out / "strip.png"))
    print(f"{', '.join(label_set)}: {cfg.n} pictures, {draw}, seed {cfg.seed}")


def quote_labels(arguments: list[str]) -> list[str]:
    """``labels=red cube, blue sphere`` as the shell hands it over, quoted for Hydra's grammar.

    A comma would otherwise ask for a sweep.
    """
    return [
        f"labels='{match[1]}'"
        if (match := re.fullmatch(r"labels=([^'\"\[].*)", argument))
        else argument
        for argument in arguments
    ]


if __name__ == "__main__":
    sys.argv[1:] = quote_labels(sys.argv[1:])
    main()
