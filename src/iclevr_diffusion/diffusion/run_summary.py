"""Results of a training, as in ``summary.json``."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """The hardware of a training, and its precision by Lightning's name."""

    device: str
    processes: int = 1
    precision: str = ""


@dataclass(frozen=True)
class PublishedWeights:
    """The weights that a run publishes: the averaged network of its best checkpoint.

    Attributes:
        scores: Metrics (``score/<list>/<name>``) of that checkpoint.
        chosen_by: Description of the criterion.
        epoch, step: Epoch and step of that checkpoint.
        sha256: Checksum of the weights.
        sampled_with: Description of the sampler of the scores.
        default_sampling: Description of the default sampling settings of the weights.
        collapsed_lists: Condition lists whose images were all the same.
        max_conditions: The number of conditions that were scored of longer lists; None for all.
    """

    scores: dict[str, float]
    chosen_by: str = ""
    epoch: int = 0
    step: int = 0
    sha256: str = ""
    sampled_with: str = ""
    default_sampling: str = ""
    collapsed_lists: list[str] = field(default_factory=list)
    max_conditions: int | None = None


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``.

    Attributes:
        name, seed: Name and seed of the run.
        data: Folder of the training frames, or name of their source.
        data_source: Name of their source; empty in older files.
        steps, images_seen: Optimizer steps, and training images in them.
        seconds: Training time, resumed runs included.
        seconds_this_process: Training time since the last resume.
        parameters: Number of parameters of the network.
        flops_forward: FLOPs of a forward pass for one image.
        flops_per_training_image: FLOPs of forward and backward pass for one image.
        network_calls: Network calls per sampled image, for the scores; the mean over the lists.
        metrics: Last value of each logged metric.
        evaluator: Name of the evaluator that gave the scores.
        machine: See :class:`Machine`.
        versions: Versions of packages.
        weights: See :class:`PublishedWeights`.
    """

    name: str
    seed: int
    data: str
    steps: int
    images_seen: int
    parameters: int
    metrics: dict[str, float]
    evaluator: str
    machine: Machine
    weights: PublishedWeights
    data_source: str = ""
    seconds: float | None = None
    seconds_this_process: float | None = None
    flops_forward: int | None = None
    flops_per_training_image: int | None = None
    network_calls: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
