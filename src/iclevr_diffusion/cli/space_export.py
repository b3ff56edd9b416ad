"""The export ``format=space``: a folder that a Hugging Face Space runs as it is."""

import re
import shutil
from importlib.metadata import requires
from pathlib import Path

import torch

from iclevr_diffusion.diffusion.io import save_model
from iclevr_diffusion.diffusion.trained import GAN, Model
from iclevr_diffusion.utils.files import write_text

PACKAGE = Path(__file__).parents[1]
PROGRAM, PACKAGES, CARD, WEIGHTS = "app.py", "requirements.txt", "README.md", "weights"
SPACE_FILES = (PROGRAM, PACKAGES, CARD, WEIGHTS, PACKAGE.name)
GRADIO = "6.31.0"
# Those of the package's requirements that the app imports.
NEEDED = (
    *("torch", "torchvision", "diffusers", "huggingface-hub", "safetensors"),
    *("numpy", "pillow", "jinja2"),
)
LEFT_OUT = ("__pycache__", "conf", "pretrained")  # as names of folders
APP = '''\
"""The app of iclevr-diffusion, as a Hugging Face Space."""

from pathlib import Path

from iclevr_diffusion.demo.space import main

main(Path(__file__).with_name("weights"))
'''
README = """\
---
title: i-CLEVR diffusion
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: {license}
---
Drag the objects: a diffusion model makes a new image from noise, step by step.
"""


def export_space(
    model: Model | GAN, out: Path, dtype: torch.dtype, license: str = "apache-2.0"
) -> list[str]:
    """Write the app with these weights, and the package itself, which is not on an index.

    Args:
        model, out, dtype: The weights, the folder to write to, and the dtype to store.
        license: License of the weights, by its identifier on the Hub.

    Returns:
        The files and folders, relative to ``out``.
    """
    save_model(model, out / WEIGHTS, dtype)
    shutil.copytree(PACKAGE, out / PACKAGE.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    write_text(out / PACKAGES, "".join(f"{line}\n" for line in space_requirements()))
    write_text(out / PROGRAM, APP)
    write_text(out / CARD, README.format(gradio=GRADIO, license=license))
    return list(SPACE_FILES)


def space_requirements() -> list[str]:
    """Return the lines of ``requirements.txt``: those of this package that the app needs."""
    declared = (line for line in requires("iclevr-diffusion") or () if ";" not in line)
    found = {re.split("[^A-Za-z0-9-]", line)[0]: line for line in declared}
    return [*(found[name] for name in NEEDED), f"gradio=={GRADIO}"]
