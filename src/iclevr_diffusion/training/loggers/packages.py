"""The packages that loggers need."""

from importlib.util import find_spec

from iclevr_diffusion.utils.errors import UserError

# By the choice of ``logger=…``: the package, its modules, and what pip installs.
PACKAGES = {
    "comet": ("comet-ml", ("comet_ml",), "comet-ml"),
    "mlflow": ("mlflow", ("mlflow",), "mlflow-skinny"),
    "tensorboard": (
        "tensorboard",
        ("tensorboard", "tensorboardX"),
        "'.[tensorboard]'",
    ),
}


def check_installed(logger: str) -> None:
    """Check that the package of a logger, a key of :data:`PACKAGES`, is installed.

    Raises:
        UserError: It is not.
    """
    package, modules, install = PACKAGES[logger]
    if not any(map(find_spec, modules)):
        raise UserError(f"logger={logger} needs {package}: pip install {install}")
