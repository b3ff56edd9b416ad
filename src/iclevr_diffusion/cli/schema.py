"""The top level of each command's config; what is below a ``Node`` is defined by its class.

The dataclasses mirror the files in ``conf/``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

from iclevr_diffusion.cli.validate import SCORING, Given, Node, joined, schema_of
from iclevr_diffusion.cli.values import is_path

Text = Annotated[str, "text with commas and quotes, which the shell hands over as it is"]
# Paths that are settings of classes: the command line is read before the classes are imported.
CLASS_PATHS = (
    *("data.root", "data.unclear.images", "evaluator.checkpoint"),
    *("net.weights", "net.coarse_weights", "net.detail_weights"),
)
# Texts that are settings of classes.
CLASS_TEXTS = ("logger.wandb.name", "logger.wandb.notes")
NET = Given(("image_size", "num_labels", "num_colors", "timesteps", "schedule"))
CALLBACK = Given(("folder", "settings", "sampling"))
SCORED = Given((*CALLBACK, *SCORING))
MODEL = Given(
    (
        *("net", "discriminator", "objective", "optimizer"),
        *("epochs", "seed", "max_steps", "label_drop", "crops", "fixed_noise"),
    )
)
LOGGER = Given(("folder", "save_dir"))


@dataclass
class Trainer:
    """Arguments of ``lightning.Trainer``; ``instead`` maps refused ones to the reason."""

    instead: ClassVar[dict[str, str]] = {
        "gradient_clip_val": "use optimizer.clip_norm={value}; null does not clip",
        "gradient_clip_algorithm": "optimizer.clip_norm clips the global norm, and nothing"
        " else is offered",
        "logger": "choose loggers with logger=csv, tensorboard, wandb, mlflow, comet or all",
        "callbacks": "callbacks are set with callbacks.ema, .scoring and .checkpoint",
        "default_root_dir": "choose the run folder with hydra.run.dir, or paths.outputs above it",
        "enable_checkpointing": "a run ends with checkpoints; callbacks.checkpoint.every_n_epochs=0"
        " writes them only at the end",
        "enable_autolog_hparams": "all loggers get all settings, and config.yaml has them; leave it"
        " out",
        "plugins": "use trainer.precision and trainer.strategy",
        "sync_batchnorm": "only the GAN has batch norms, and their statistics are averaged over all"
        " processes; leave it out",
        "use_distributed_sampler": "each process always gets its own share of every batch; leave it"
        " out",
        "reload_dataloaders_every_n_epochs": "the frames stay in memory and are shuffled every"
        " epoch; leave it out",
        "limit_test_batches": "training runs no test loop; to score fewer samples, set"
        " callbacks.scoring.max_conditions, or seeds of evaluate",
        "limit_predict_batches": "training runs no predict loop; to generate fewer samples, set"
        " callbacks.scoring.max_conditions, or n of sample",
        "barebones": "to see where the time goes, use debug=profile",
        "model_registry": "the weights are written to the run folder; copy them from there",
    }

    accelerator: str
    devices: int | str | list[int]
    num_nodes: int
    strategy: str
    precision: int | str
    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: str | dict[str, int] | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    overfit_batches: int | float
    fast_dev_run: bool | int
    accumulate_grad_batches: int
    check_val_every_n_epoch: int
    val_check_interval: int | float
    num_sanity_val_steps: int
    log_every_n_steps: int
    enable_progress_bar: bool
    enable_model_summary: bool
    deterministic: bool | str
    benchmark: bool | None
    inference_mode: bool
    profiler: str | None
    detect_anomaly: bool


@dataclass
class Paths:
    """The folders that all commands share."""

    outputs: Path | str
    cache: Path | str


@dataclass
class Published:
    """The figures that a lab report gives for an experiment."""

    report: str
    test: float
    new_test: float


@dataclass
class Train:
    """``conf/train.yaml``."""

    data: Annotated[Node, Given(("cache",))]
    model: Annotated[Node, MODEL]
    net: Annotated[Node, NET]
    optimizer: Node
    trainer: Trainer
    logger: dict[str, Annotated[Node, LOGGER] | None]
    callbacks: dict[str, Annotated[Node, SCORED] | None]
    evaluator: Node
    paths: Paths
    plugins: list[str]
    name: str
    seed: int
    resume: bool | Path | str
    compile: bool
    fixed_noise: bool
    published: Published | None
    schedule: Node | None = None
    prediction: Annotated[Node, Given(("schedule",))] | None = None
    sampler: Node | None = None
    guidance: Node | None = None


@dataclass
class TrainEvaluator:
    """``conf/train_evaluator.yaml``."""

    data: Annotated[Node, Given(("cache", "seed", "train_on", "with_unclear"))]
    net: Node
    optimizer: Node
    trainer: Trainer
    logger: dict[str, Annotated[Node, LOGGER] | None]
    callbacks: dict[str, Annotated[Node, CALLBACK] | None]
    paths: Paths
    plugins: list[str]
    name: str
    seed: int
    resume: bool | Path | str
    train_on: str


@dataclass
class SamplerOverrides:
    """Null: the value that is stored with the weights."""

    name: str | None
    steps: int | None
    spacing: str | None
    max_noise: float | None
    min_noise: float | None
    rho: float | None
    final_noise: bool | None


@dataclass
class GuidanceOverrides:
    """Null: the value that is stored with the weights."""

    mode: str | None
    scale: float | None
    min_noise: float | None
    max_noise: float | None
    rescale: float | None


@dataclass
class Sample:
    """``conf/sample.yaml``."""

    paths: Paths
    plugins: list[str]
    weights: Path | str
    labels: Text | list[str]
    positions: list[tuple[float, float]] | None
    layout: str
    n: int
    seed: int
    sampler: SamplerOverrides
    guidance: GuidanceOverrides
    strip: bool
    animation: bool
    device: str
    out: Path | str | None


@dataclass
class SeveralSamplers(SamplerOverrides):
    """As the base class; lists are evaluated in all combinations."""

    name: str | list[str] | None  # type: ignore[assignment]
    steps: int | list[int] | None  # type: ignore[assignment]


@dataclass
class SeveralScales(GuidanceOverrides):
    """As the base class; lists are evaluated in all combinations."""

    mode: str | list[str] | None  # type: ignore[assignment]
    scale: float | list[float] | None  # type: ignore[assignment]


@dataclass
class Evaluate:
    """``conf/evaluate.yaml``."""

    data: Annotated[Node, Given(("cache",))]
    evaluator: Node
    paths: Paths
    plugins: list[str]
    weights: Path | str
    ema_length: float | list[float] | None
    images: Path | str | None
    lists: Path | str | list[Path | str]
    layout: str
    seeds: int
    sampler: SeveralSamplers
    guidance: SeveralScales
    reference_frames: int
    fidelity: bool | str
    course: bool
    batch_size: int
    wandb_run: bool | Path | str | None
    device: str
    out: Path | str | None


@dataclass
class App:
    """``conf/app.yaml``."""

    paths: Paths
    plugins: list[str]
    weights: Path | str
    evaluator: Node
    limits: Node
    host: str
    port: int
    share: bool
    device: str


@dataclass
class Export:
    """``conf/export.yaml``."""

    paths: Paths
    plugins: list[str]
    weights: Path | str
    ema_length: float | None
    format: str
    dtype: str | None
    evaluation: Path | str | None
    out: Path | str | None
    repo: str | None
    private: bool
    license: str


def names_of_paths(schema: type) -> set[str]:
    """Return the settings that are paths, or lists of paths, as dotted names."""
    return {name for name, hint in _hints(schema) if is_path(hint)} | {*CLASS_PATHS}


def names_of_texts(schema: type) -> set[str]:
    """Return the settings in which a comma does not start a sweep, as dotted names."""
    texts = {name for name, hint in _hints(schema) if Text in getattr(hint, "__args__", ())}
    groups = {item.name for item in fields(schema)}
    return texts | {name for name in CLASS_TEXTS if name.partition(".")[0] in groups}


def names_in(schema: type) -> list[str]:
    """Every setting and group of a schema, such as ``trainer`` and ``trainer.devices``."""
    return [name for name, _ in _hints(schema)]


def _hints(schema: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting and group of a schema with its type hint."""
    hints = get_type_hints(schema, include_extras=True)
    for item in fields(schema):
        name, hint = joined(path, item.name), hints[item.name]
        yield name, hint
        if inner := schema_of(hint):
            yield from _hints(inner, name)
