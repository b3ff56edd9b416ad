"""Generate one image of a scene, a step at a time."""

import queue
import threading
import time
from collections.abc import Generator

from torch import Tensor

from iclevr_diffusion.demo.requests import Scene
from iclevr_diffusion.diffusion.pipeline import Pipeline
from iclevr_diffusion.diffusion.samplers import Step
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.pixels import to_uint8
from iclevr_diffusion.utils.rng import image_generators

STOPPED = "The app was stopped."
_stopping = threading.Event()
_threads: set[threading.Thread] = set()


def stop() -> None:
    """End sampling for all visitors, and wait for it: else a thread in torch aborts the process."""
    _stopping.set()
    for thread in list(_threads):
        thread.join()


def generate(
    pipeline: Pipeline, scene: Scene, seed: int, seconds: float
) -> Generator[Step, None, Tensor]:
    """Generate an image; yield each step, its images as uint8.

    The image is that of ``sample`` with these labels, positions and seed. Sampling runs in a thread
    of its own, and ends if this generator is closed.

    Args:
        pipeline, scene, seed: The network, the objects, and the seed of the noise.
        seconds: Longest time to sample.

    Returns:
        The image, float32, (1, C, H, W), in [-1, 1].

    Raises:
        UserError: It takes too long, the network generates NaN, or :func:`stop` was called.
    """
    steps: queue.SimpleQueue[Step | Tensor | Exception] = queue.SimpleQueue()
    closed = threading.Event()
    end = time.monotonic() + seconds

    def on_step(step: Step) -> None:
        if _stopping.is_set():
            raise UserError(STOPPED)
        if closed.is_set() or time.monotonic() > end:
            raise UserError(f"This takes longer than {seconds:g} seconds: choose fewer steps.")
        if step.x0.isfinite().all():  # else the pipeline says so at the end
            steps.put(step._replace(x_t=to_uint8(step.x_t), x0=to_uint8(step.x0)))

    def run() -> None:
        try:
            positions = scene.tensor(pipeline.vocabulary)
            steps.put(pipeline.generate(scene.label_set, 1, seed, positions, on_step))
        except Exception as error:  # the visitor's thread raises it
            steps.put(error)
        finally:
            _threads.discard(thread)

    if _stopping.is_set():
        raise UserError(STOPPED)
    thread = threading.Thread(target=run, daemon=True)
    _threads.add(thread)
    thread.start()
    try:
        while isinstance(each := steps.get(), Step):
            yield each
        if isinstance(each, Exception):
            raise each
        return each
    finally:
        closed.set()


def sample_scene(pipeline: Pipeline, scene: Scene, seed: int) -> Scene:
    """Return the scene with positions sampled from the network's prior, if it takes any."""
    vocabulary = pipeline.vocabulary
    labels = vocabulary.encode(scene.label_set)[None]
    positions = pipeline.sample_positions(labels, image_generators(seed, [0], "layout"))
    if positions is None:
        return Scene(scene.label_set, None)
    return _placed(scene, positions[0], pipeline)


def snap_scene(pipeline: Pipeline, scene: Scene) -> Scene:
    """Return the scene with positions as in the training images: ``sample`` does the same."""
    prior, positions = pipeline.position_prior, scene.tensor(pipeline.vocabulary)
    if prior is None or positions is None:
        return scene
    return _placed(scene, prior.snap(positions), pipeline)


def floor_bounds(pipeline: Pipeline) -> list[float] | None:
    """Return [left, top, right, bottom] of the positions in the training images, in [-1, 1]."""
    prior = pipeline.position_prior
    if prior is None:
        return None
    rows, columns = (prior.density > 0).nonzero().unbind(1)
    size = len(prior.density)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    return [round(2 * int(edge) / size - 1, 4) for edge in edges]


def _placed(scene: Scene, positions: Tensor, pipeline: Pipeline) -> Scene:
    """Return the scene with the positions (L, D), without their headings."""
    index = pipeline.vocabulary.index
    pairs: list[list[float]] = [positions[index[name], :2].tolist() for name in scene.label_set]
    return Scene(scene.label_set, tuple((round(x, 6), round(y, 6)) for x, y in pairs))
