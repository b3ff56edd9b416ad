"""The results of an evaluation, as they are in ``evaluation.json``."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from iclevr_diffusion.utils.statistics import Statistics

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class ListResult:
    """The scores of one condition list, sampled with one setting.

    Attributes:
        conditions: The number of its label sets.
        metrics: By name, over the seeds.
        second_evaluator: The metrics of the second evaluator.
        seconds_per_image: Sampling time per image; None with one seed.
        distances: Fréchet and kernel distance to the reference, if there is one.
        by_count, by_label: Accuracy by number of objects and by label, over all seeds.
        by_step, by_step_x_t: Accuracy of the estimate of x_0 and of x_t after each denoising step,
            of the first images of the first seed; see :class:`~.metric_collection.AccuracyByStep`.
        factors: Shares of images with each factor right, over the seeds, by the names of
            :data:`~.factors.FACTOR_TITLES`; empty if labels are not a color and a shape each.
        shown_by_group: Share of the requested objects that are shown, over all seeds, by ``color``,
            ``shape``, ``position`` and ``number`` of objects, and within these.
        exact_by_number: Exact match by number of objects, over all seeds.
        network_calls: Per image, the mean over the conditions; with composed guidance it depends on
            their numbers of labels.
    """

    conditions: int
    metrics: dict[str, Statistics]
    second_evaluator: dict[str, Statistics] = field(default_factory=dict)
    seconds_per_image: float | None = None
    distances: dict[str, float] = field(default_factory=dict)
    by_count: dict[str, float] = field(default_factory=dict)
    by_label: dict[str, float] = field(default_factory=dict)
    by_step: list[float] = field(default_factory=list)
    by_step_x_t: list[float] = field(default_factory=list)
    factors: dict[str, Statistics] = field(default_factory=dict)
    shown_by_group: dict[str, dict[str, float]] = field(default_factory=dict)
    exact_by_number: dict[str, float] = field(default_factory=dict)
    network_calls: float | None = None


@dataclass(frozen=True)
class Controlled:
    """A figure of fidelity.

    Attributes:
        value: The figure of generated against real images.
        control: The same between two halves of the real images.
    """

    value: float
    control: float


@dataclass(frozen=True)
class Fidelity:
    """Generated images compared with real frames; see :mod:`~.evaluation.fidelity`.

    Attributes:
        num_frames, num_crops: The numbers compared.
        images: The figures of whole images, by name.
        crops: Those of crops around the objects; None without positions or with too few.
        layout: How the positions were sampled; None if the network takes none.
    """

    num_frames: int
    num_crops: int
    images: dict[str, Controlled]
    crops: dict[str, Controlled] | None = None
    layout: str | None = None


@dataclass(frozen=True)
class SettingResult:
    """The results of one way to sample.

    Attributes:
        name: The setting in words.
        sampler, steps, guidance_scale, layout: The setting; the layout is None if the network
            takes no positions. Without a sampler and steps, the images were given.
        network_calls: Per image, the mean over the conditions of all lists.
        options: Other settings of the sampler and the guidance.
        lists: The scores by condition list.
        fidelity: None if it was not measured.
    """

    name: str
    sampler: str
    steps: int
    guidance_scale: float
    network_calls: float
    lists: dict[str, ListResult]
    layout: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    fidelity: Fidelity | None = None

    def calls_for(self, name: str) -> float:
        """Return the network calls per image of a list; if unknown, those of all lists."""
        return self.lists[name].network_calls or self.network_calls


@dataclass(frozen=True)
class Evaluation:
    """The content of ``evaluation.json``.

    Attributes:
        weights: Their folder or name; empty if the images were given.
        weights_sha256: Their checksum.
        trained_on: The description of their training data; empty if it is unknown.
        evaluator, second_evaluator: Names.
        lists: The origin of each condition list.
        seeds: How often each list was sampled.
        reference: The description of the frames that distances are measured to, and their number
            (``frames``); None without any.
        rendered: For each number of objects in the lists that no training frame shows, the figures
            of the evaluators on rendered scenes of as many; see :mod:`~.rendered`.
        machine: The device.
        versions: Versions of packages.
        images: The folder of the images, if they were given and not generated.
        settings: The results of each way to sample.
    """

    weights: str
    evaluator: str
    lists: dict[str, str]
    seeds: int
    settings: list[SettingResult]
    weights_sha256: str = ""
    trained_on: dict[str, Any] = field(default_factory=dict)
    second_evaluator: str | None = None
    reference: dict[str, Any] | None = None
    rendered: dict[str, dict[str, float]] = field(default_factory=dict)
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    images: str | None = None

    def results(self) -> Iterator[tuple[SettingResult, str, ListResult]]:
        """Yield each result with its setting and the name of its list."""
        for setting in self.settings:
            for name, result in setting.lists.items():
                yield setting, name, result
