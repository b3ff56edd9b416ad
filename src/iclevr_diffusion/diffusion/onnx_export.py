"""The export to ONNX: whether a model can be exported, and the data that a client needs to sample.

The graph itself is :mod:`.onnx_graph`.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec

from iclevr_diffusion.diffusion.guidance import Guidance
from iclevr_diffusion.diffusion.trained import Model
from iclevr_diffusion.models.layout import CANDIDATES, CLEARANCE, Layout
from iclevr_diffusion.models.protocol import position_prior
from iclevr_diffusion.utils.errors import UserError

ORDERS = {"ddim": 1, "dpm_solver": 2}  # of the samplers that clients have
PACKAGES = "format=onnx needs the package {}: pip install '.[onnx]'"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PriorOverPositions:
    """The prior of :class:`~iclevr_diffusion.models.layout.Layout`, for the layout ``clear``.

    Attributes:
        first: [x, y] of one random object of each image.
        density: Density of the others over equal cells of the image, row by row; not normalized.
        clearance: Minimum distance between objects, if there is room.
        candidates: Number of random positions to try; the first one that is clear is used.
        turning: Labels whose objects have a heading, as indices. Then a position is [x, y, cos a,
            sin a] with a uniform angle a, and 0, 0 for all other labels, and all objects but the
            first are moved by up to half a pixel. None: it is [x, y].
    """

    first: list[float]
    density: list[list[float]]
    clearance: float
    candidates: int
    turning: list[int] | None = None


@dataclass(frozen=True)
class Client:
    """Content of ``model.json``: everything a program needs to sample with ``model.onnx``.

    Attributes:
        labels: Names of the entries of the input ``labels``.
        image_size: H = W.
        timesteps: Timesteps of the default sampler; the first x_t is standard normal noise.
        alphas, sigmas: α and σ of x_t = α x_0 + σ ε at those timesteps, α² + σ² = 1.
        order: Order of DPM-Solver++ (arXiv 2211.01095): 2 (multistep), or 1, which is DDIM.
        guidance_scales: Guidance scale that the graph uses at those timesteps; 1 is no guidance.
        pixel_mean, pixel_scale: A pixel is mean + scale · x_0, in 0..255.
        positions: Prior over positions; None if the network takes none.
        final_noise: (C, C); at the end, its product with one standard normal number per channel is
            added to each pixel of x_0. None: nothing is added.
    """

    labels: list[str]
    image_size: int
    timesteps: list[int]
    alphas: list[float]
    sigmas: list[float]
    order: int
    guidance_scales: list[float]
    pixel_mean: float = 127.5
    pixel_scale: float = 127.5
    positions: PriorOverPositions | None = None
    final_noise: list[list[float]] | None = None


def check_onnx(model: object) -> None:
    """Check that a model can be exported.

    Raises:
        UserError: A package is missing, or the model is a GAN.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise UserError(PACKAGES.format(package))
    if not isinstance(model, Model):
        raise UserError("format=onnx exports only diffusion models; these weights are a GAN's")
    mode = model.pipeline().denoiser.guidance.mode
    if mode != Guidance.mode:
        raise UserError(
            f"format=onnx exports only guidance.mode={Guidance.mode}; these weights use {mode}"
        )


def client(model: Model) -> Client:
    """Return the data that a client needs to sample with the default settings of a model.

    A default sampler other than those of ``ORDERS`` is replaced by ``dpm_solver``, with a warning.
    """
    pipeline = model.pipeline()
    if pipeline.sampler_name not in ORDERS:
        log.warning(
            "model.json uses dpm_solver: %s, the sampler of the weights, cannot be exported",
            pipeline.sampler_name,
        )
    prior = position_prior(pipeline.denoiser.net)
    factor = pipeline.sampler.noise_factor
    alpha_bars = model.schedule.alphas_cumprod.double()[pipeline.timesteps]
    return Client(
        labels=list(model.vocabulary.names),
        image_size=model.image_shape[1],
        timesteps=pipeline.timesteps,
        alphas=alpha_bars.sqrt().tolist(),
        sigmas=(1 - alpha_bars).sqrt().tolist(),
        order=ORDERS.get(pipeline.sampler_name, ORDERS["dpm_solver"]),
        guidance_scales=[pipeline.denoiser.scales[timestep] for timestep in pipeline.timesteps],
        positions=None if prior is None else _prior(prior),
        final_noise=None if factor is None else factor.tolist(),
    )


def _prior(layout: Layout) -> PriorOverPositions:
    turning = None if layout.turning is None else layout.turning.nonzero().flatten().tolist()
    return PriorOverPositions(
        layout.first.tolist(), layout.density.tolist(), CLEARANCE, CANDIDATES, turning
    )
