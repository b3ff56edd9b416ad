"""The settings of a run that must match on resume."""

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig

from iclevr_diffusion.cli.instantiate import plain
from iclevr_diffusion.cli.schema import MODEL
from iclevr_diffusion.cli.validate import TARGET, find_target, joined, parameters
from iclevr_diffusion.data.datamodule import DataModule
from iclevr_diffusion.data.evaluator_datamodule import EvaluatorData
from iclevr_diffusion.training.base import TrainedModule
from iclevr_diffusion.training.diffusion import DiffusionModule


def run_settings(
    cfg: DictConfig, module: TrainedModule, datamodule: DataModule | EvaluatorData
) -> dict[str, Any]:
    """Return the settings that must match on resume, as plain values."""
    result = module.description()
    if isinstance(module, DiffusionModule):
        crops = datamodule.crops if isinstance(datamodule, DataModule) else None
        if crops is not None:
            result |= {"crop_size": crops.size, "crop_near_objects": crops.near_objects}
        result["label_drop"] = module.label_drop
    for group, given in (("prediction", ()), ("model", MODEL)):
        if cfg.get(group) is not None:
            described = described_node(cfg[group], group, given)
            result |= {joined(group, name): value for name, value in described.items()}
    if isinstance(datamodule, DataModule) and datamodule.holdout is not None:
        result["data.holdout"] = datamodule.holdout.description()
    if cfg.get("fixed_noise", False):
        result["fixed_noise"] = True
    if cfg.trainer.overfit_batches:
        result["overfit_batches"] = cfg.trainer.overfit_batches
    posthoc = cfg.callbacks.get("posthoc_ema")
    if posthoc is not None:
        result["posthoc_ema"] = described_node(posthoc, "callbacks.posthoc_ema")
    ema = cfg.callbacks.get("ema")
    return result | {
        "seed": cfg.seed,
        "data": datamodule.identity(),
        "optimizer": described_node(cfg.optimizer, "optimizer"),
        "ema": None if ema is None else described_node(ema, "callbacks.ema"),
        "accumulate_grad_batches": cfg.trainer.accumulate_grad_batches,
        "batch_size": datamodule.batch_size,
    }


def described_node(node: DictConfig, path: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Return the class that a node names, by its full name, and all arguments, as plain values.

    An argument that is left to its default counts as one that names it.

    Args:
        node: A config node with a ``_target_``.
        path: Its dotted name.
        given: The arguments that the command adds, which are left out.
    """
    result: dict[str, Any] = _described(plain(node), path, given)
    return result


def _described(value: Any, path: str, given: Collection[str] = ()) -> Any:
    if isinstance(value, list):
        return [_described(entry, path) for entry in value]
    if not isinstance(value, dict):
        return value
    settings = {
        key: _described(entry, joined(path, str(key)))
        for key, entry in value.items()
        if key != TARGET
    }
    if TARGET not in value:
        return settings
    target = find_target(value[TARGET], path)
    defaults = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in parameters(target)[0].items()
        if name not in given and _is_plain(parameter.default)
    }
    has_name = hasattr(target, "__qualname__")
    name = f"{target.__module__}.{target.__qualname__}" if has_name else value[TARGET]
    return {TARGET: name, **defaults, **settings}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
