"""What settings each command has, of which type, and the check of a composed config against them.

The dataclasses mirror the files in ``conf/``. Which values of a type make sense is for the objects
to say that are built with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from iclevr_diffusion.utils.closest import did_you_mean
from iclevr_diffusion.utils.errors import UserError
from iclevr_diffusion.utils.files import expand_home

PATH = {"kind": "path"}  # a file or folder, in which ~ is the home folder; or a list of such
WORDS = {"kind": "words"}  # text that a shell hands over with commas and quotes in it
_SHOWN = 80  # characters of a wrong value


@dataclass
class Data:
    source: str
    root: str | None = field(metadata=PATH)
    sequences: int
    seed: int
    image_size: int
    batch_size: int
    val_fraction: float
    device_resident: bool | str
    crop_size: int | None
    crop_near_objects: float


@dataclass
class UNet:
    labels: str
    block_out_channels: list[int]
    attention: list[bool]
    mid_attention: bool
    layers_per_block: int
    head_dim: int
    scale_shift: bool
    patch_size: int
    norm_groups: int
    dropout: float


@dataclass
class UViT:
    channels: list[int]
    blocks: list[int]
    width: int
    depth: int
    head_dim: int
    object_tokens: int
    patch_size: int
    positions: bool


@dataclass
class Detail:
    channels: list[int]
    blocks: list[int]
    data_std: float


@dataclass
class Experts:
    coarse_weights: str = field(metadata=PATH)
    switch: float
    detail: Detail


@dataclass
class DCGAN:
    latent: int
    channels: list[int]
    batch_sizes: list[int]


@dataclass
class Schedule:
    name: str
    timesteps: int
    beta_start: float
    beta_end: float


@dataclass
class Prediction:
    name: str
    min_snr_gamma: float | None
    data_std: float | None
    timestep_shift: float
    max_weight: float | None
    max_noise: float | None
    noise_mean: float | None
    noise_std: float | None
    sampled_as: str | None


@dataclass
class Sampler:
    name: str
    steps: int
    spacing: str
    max_noise: float
    min_noise: float
    rho: float


@dataclass
class Guidance:
    scale: float
    min_noise: float
    max_noise: float | None
    label_drop: float


@dataclass
class Optimizer:
    name: str
    lr: float
    lr_multiplier: float
    matrix_lr: float | None
    betas: list[float]
    weight_decay: float
    eps: float
    warmup_steps: int
    decay: str
    final_lr_fraction: float
    clip_norm: float | None


@dataclass
class Trainer:
    """Arguments of ``lightning.Trainer``; ``instead`` has those that this project does not take."""

    instead: ClassVar[dict[str, str]] = {
        "gradient_clip_val": "use optimizer.clip_norm={value}; null does not clip",
        "gradient_clip_algorithm": "optimizer.clip_norm clips the global norm, and nothing"
        " else is offered",
        "logger": "choose loggers with logger=csv, tensorboard, wandb or all",
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
        "limit_predict_batches": "training runs no predict loop; to draw fewer samples, set"
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
class WandB:
    project: str
    group: str | None
    tags: list[str]
    fallback: str
    start_timeout: float
    finish_timeout: float


@dataclass
class TensorBoard:
    """It has no settings; ``{}`` asks for it."""


@dataclass
class Logger:
    wandb: WandB | None
    tensorboard: TensorBoard | None


@dataclass
class EMA:
    decay: float


@dataclass
class Scoring:
    every_n_epochs: int
    seed: int
    sampler: Sampler | None
    layout: str
    max_conditions: int | None


@dataclass
class Checkpoint:
    every_n_epochs: int
    every_n_steps: int
    keep_every_n_epochs: int


@dataclass
class Callbacks:
    ema: EMA
    scoring: Scoring
    checkpoint: Checkpoint


@dataclass
class EvaluatorCallbacks:
    ema: EMA
    checkpoint: Checkpoint


@dataclass
class Paths:
    outputs: str = field(metadata=PATH)
    cache: str = field(metadata=PATH)


@dataclass
class Evaluator:
    checkpoint: str | None = field(metadata=PATH)


@dataclass
class Published:
    """What a report says of an experiment."""

    report: str
    test: float
    new_test: float


@dataclass
class Train:
    """``conf/train.yaml``."""

    data: Data
    net: UNet | UViT | Detail | Experts | DCGAN
    schedule: Schedule | None
    prediction: Prediction | None
    sampler: Sampler | None
    guidance: Guidance | None
    optimizer: Optimizer
    trainer: Trainer
    logger: Logger
    callbacks: Callbacks
    paths: Paths
    name: str
    seed: int
    resume: bool | str = field(metadata=PATH)
    compile: bool
    fixed_noise: bool
    published: Published | None
    evaluator: Evaluator


@dataclass
class UnclearFrames:
    sequences: int
    spoiled: int
    images: str | None = field(metadata=PATH)


@dataclass
class EvaluatorFrames:
    root: str | None = field(metadata=PATH)
    sequences: int
    batch_size: int
    unclear: UnclearFrames


@dataclass
class EvaluatorNet:
    kind: str
    widths: list[int] | None
    hidden: int | None
    unclear: bool


@dataclass
class TrainEvaluator:
    """``conf/train_evaluator.yaml``."""

    optimizer: Optimizer
    trainer: Trainer
    logger: Logger
    paths: Paths
    name: str
    seed: int
    resume: bool | str = field(metadata=PATH)
    train_on: str
    data: EvaluatorFrames
    net: EvaluatorNet
    callbacks: EvaluatorCallbacks


@dataclass
class AuthorsSampler:
    """Of the commands that draw; null: as the author of the weights drew."""

    name: str | None
    steps: int | None
    spacing: str | None
    max_noise: float | None
    min_noise: float | None
    rho: float | None


@dataclass
class AuthorsGuidance:
    scale: float | None
    min_noise: float | None
    max_noise: float | None


@dataclass
class Sample:
    """``conf/sample.yaml``."""

    paths: Paths
    weights: str = field(metadata=PATH)
    labels: str | list[str] = field(metadata=WORDS)
    positions: list[list[float]] | None
    layout: str
    n: int
    seed: int
    sampler: AuthorsSampler
    guidance: AuthorsGuidance
    strip: bool
    device: str
    out: str | None = field(metadata=PATH)


@dataclass
class SeveralSamplers:
    name: str | list[str] | None
    steps: int | list[int] | None
    spacing: str | None
    max_noise: float | None
    min_noise: float | None
    rho: float | None


@dataclass
class SeveralScales:
    scale: float | list[float] | None
    min_noise: float | None
    max_noise: float | None


@dataclass
class Evaluate:
    """``conf/evaluate.yaml``."""

    data: Data
    paths: Paths
    weights: str = field(metadata=PATH)
    lists: str | list[str] = field(metadata=PATH)
    layout: str
    seeds: int
    sampler: SeveralSamplers
    guidance: SeveralScales
    evaluator: Evaluator
    reference_frames: int
    fidelity: bool | str
    batch_size: int
    device: str
    out: str | None = field(metadata=PATH)


def check_settings(cfg: DictConfig, schema: type) -> None:
    """Hold a composed config against one of the dataclasses above.

    A number where text belongs, such as ``name=2024``, becomes text in ``cfg``, and ``~`` at the
    beginning of a path the home folder.

    Raises:
        UserError: a setting is missing, unknown or of another type. Numbers are finite and have at
            most 64 bits, text fits into UTF-8 and holds no NUL.
    """
    _check_group(cfg, schema, "", every_name_of(schema))


def every_name_of(schema: type, prefix: str = "") -> list[str]:
    """Every setting and group of a dataclass above, such as ``trainer`` and ``trainer.devices``."""
    result: dict[str, None] = {}
    for name, kind in get_type_hints(schema).items():
        if name not in (item.name for item in fields(schema)):
            continue
        result[prefix + name] = None
        for part in _parts(kind):
            if hasattr(part, "__dataclass_fields__"):
                result |= dict.fromkeys(every_name_of(part, f"{prefix}{name}."))
    return list(result)


def names_of(kind: dict[str, str], schema: type, prefix: str = "") -> set[str]:
    """The dotted names of the settings that are marked as ``PATH`` or ``WORDS``."""
    result = set()
    kinds = get_type_hints(schema)
    for item in fields(schema):
        if item.metadata == kind:
            result.add(prefix + item.name)
        for part in _parts(kinds[item.name]):
            if hasattr(part, "__dataclass_fields__"):
                result |= names_of(kind, part, f"{prefix}{item.name}.")
    return result


def _check_group(group: DictConfig, schema: type, prefix: str, every_name: Sequence[str]) -> None:
    kinds = get_type_hints(schema)
    names = [item.name for item in fields(schema)]
    paths = [item.name for item in fields(schema) if item.metadata == PATH]
    present = [str(key) for key in group.keys()]  # noqa: SIM118  "in" leaves out those that are ???
    for key in present:
        if key not in names:
            raise UserError(_no_such_setting(group, key, schema, prefix, every_name))
    for name in names:
        key = prefix + name
        if name not in present:
            raise UserError(f"{key}: this setting is missing")
        if OmegaConf.is_missing(group, name):
            raise UserError(f"{key} is needed: write {key}=…")
        value, kind = group[name], kinds[name]
        inner = _group_type(kind, value)
        if inner is not None and isinstance(value, DictConfig):
            _check_group(value, inner, f"{key}.", every_name)
        elif not _fits(value, kind):
            as_text = _as_text(value)
            if not _fits(as_text, kind):
                most = (
                    " of at most 64 bits" if type(value) is int and not _in_64_bits(value) else ""
                )
                raise UserError(f"{key} must be {_words(kind)}{most}, got {_shown(value)}")
            group[name] = as_text
        if name in paths:
            _expand(group, name)


def _expand(group: DictConfig | ListConfig, key: Any) -> None:
    """Put the home folder in the position of ``~``, in a path or in each path of a list."""
    value = group[key]
    if isinstance(value, ListConfig):
        for index in range(len(value)):
            _expand(value, index)
    elif isinstance(value, str) and value.startswith("~"):
        group[key] = expand_home(value)


def _no_such_setting(
    group: DictConfig, key: str, schema: type, prefix: str, every_name: Sequence[str]
) -> str:
    """What to say of an unknown setting: what is used in its position, or the closest name."""
    instead: dict[str, str] = getattr(schema, "instead", {})
    if key in instead:
        value = "???" if OmegaConf.is_missing(group, key) else _shown(group[key])
        return f"{prefix}{key} is not used here: {instead[key].format(value=value)}"
    names = [*every_name, *(prefix + name for name in instead)]
    return f"{prefix}{key}: there is no such setting{did_you_mean(prefix + key, names)}"


def _group_type(kind: Any, value: Any) -> Any:
    """The dataclass of a group; of several that which has most of its settings."""
    groups = [part for part in _parts(kind) if hasattr(part, "__dataclass_fields__")]
    present = set(value) if isinstance(value, DictConfig) else set()
    return max(groups, key=lambda g: len(present & {f.name for f in fields(g)}), default=None)


def _parts(kind: Any) -> tuple[Any, ...]:
    """The types that a union admits; one that is none, alone."""
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    return any(_is(value, part) for part in _parts(kind))


def _is(value: Any, kind: Any) -> bool:
    """Whether a value of OmegaConf's is of one plain type, or a list or mapping of such."""
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return isinstance(value, ListConfig) and all(_is(entry, item) for entry in value)
    if get_origin(kind) is dict:
        _, item = get_args(kind)
        return isinstance(value, DictConfig) and all(_is(entry, item) for entry in value.values())
    if kind in (int, float) and type(value) is int:
        return _in_64_bits(value)
    if kind is float:
        return type(value) is float and math.isfinite(value)
    if kind is str:
        return type(value) is str and "\0" not in value and _fits_utf8(value)
    return type(value) is kind


def _in_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def _fits_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a command line that was not UTF-8
        return False
    return True


def _as_text(value: Any) -> Any:
    """A number as text, also within a list; anything else as it is."""
    if isinstance(value, ListConfig):
        return ListConfig([_as_text(entry) for entry in value])
    return str(value) if type(value) in (int, float) else value


def _words(kind: Any) -> str:
    """What a value has to be."""
    one = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        NoneType: "null",
        list[int]: "a list of whole numbers",
        list[float]: "a list of finite numbers",
        list[list[float]]: "a list of pairs of finite numbers",
        list[bool]: "a list of true and false",
        list[str]: "a list of text",
        dict[str, int]: "a mapping to whole numbers",
    }
    *first, last = dict.fromkeys(one.get(part, "a group of settings") for part in _parts(kind))
    return f"{', '.join(first)} or {last}" if first else last


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, DictConfig | ListConfig):
        value = OmegaConf.to_container(value)
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def plain(node: DictConfig) -> dict[str, Any]:
    """A config node as plain, resolved containers."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True, throw_on_missing=True))


def sampling_settings(sampler: DictConfig, guidance: DictConfig) -> dict[str, Any]:
    """Arguments for :meth:`~iclevr_diffusion.diffusion.io.Model.pipeline`, nulls included."""
    settings = plain(guidance)
    return plain(sampler) | {f"guidance_{name}": value for name, value in settings.items()}
