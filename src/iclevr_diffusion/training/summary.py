"""The results of a training, as they are in ``summary.json``."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """What a run was trained on.

    Attributes:
        device: in words.
        processes: how many.
        precision: Lightning's name of it.
    """

    device: str
    processes: int = 1
    precision: str = ""


@dataclass(frozen=True)
class PublishedWeights:
    """The weights that a run publishes: the averaged network of its best checkpoint.

    Attributes:
        scores: the metrics (``score/<list>/<name>``) of that checkpoint.
        chosen_by: what it was chosen by, in words.
        epoch, step: of that checkpoint.
        sha256: the checksum of the weights.
        sampled_with: the sampler setting of the scores, in words.
        default_sampling: how the weights sample if nothing else is asked for, in words.
        collapsed_lists: the condition lists of which all images were alike.
    """

    scores: dict[str, float]
    chosen_by: str = ""
    epoch: int = 0
    step: int = 0
    sha256: str = ""
    sampled_with: str = ""
    default_sampling: str = ""
    collapsed_lists: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``.

    Attributes:
        name, seed: of the run.
        data: the folder of the training frames, or the name of their source.
        steps, images_seen: optimizer steps, and images that the network was shown in them.
        seconds: of training, in all processes that the run was resumed in.
        seconds_this_process: of training, in the last of them.
        parameters: of the trained network.
        flops_forward: of one image, once through the network.
        flops_per_training_image: forward and backward.
        network_calls: per image, for the scores.
        metrics: the last value of each logged metric.
        evaluator: the name of the one that gave the scores.
        machine: see :class:`Machine`.
        versions: of packages.
        weights: see :class:`PublishedWeights`.
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
    seconds: float | None = None
    seconds_this_process: float | None = None
    flops_forward: int | None = None
    flops_per_training_image: int | None = None
    network_calls: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
