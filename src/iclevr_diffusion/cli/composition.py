"""Faster composition by Hydra."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from iclevr_diffusion.cli.overrides import SWEEP_FLAGS


@contextmanager
def quick_help() -> Iterator[None]:
    """Let Hydra's help list the groups without copying all configs for each of them.

    The copies would take longer than everything else.
    """
    slow = ConfigLoaderImpl.get_group_options

    def get_group_options(
        self: ConfigLoaderImpl,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        return self.repository.get_group_options(group_name, results_filter)

    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.get_group_options = slow  # type: ignore[method-assign]


@contextmanager
def composed_once() -> Iterator[None]:
    """Let Hydra compose the config of a run once.

    It would do so twice: to find out from ``hydra.mode`` whether the run is a sweep, and to run it.
    """
    mode_of, compose = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    composed: list[DictConfig] = []

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> RunMode | None:
        mode: RunMode | None
        if any(flag in sys.argv for flag in SWEEP_FLAGS):
            mode = mode_of(self, config_name, overrides)
            return mode
        try:
            cfg = self.config_loader.load_configuration(config_name, overrides, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, ValueError):
            # A user's config may make it a sweep, for which more values are allowed.
            if mode_of(self, config_name, overrides) == RunMode.MULTIRUN:
                return RunMode.MULTIRUN
            raise
        if cfg.hydra.mode == RunMode.MULTIRUN:
            return RunMode.MULTIRUN
        composed.append(cfg)
        return RunMode.RUN

    def load_configuration(self: ConfigLoaderImpl, *arguments: Any, **named: Any) -> DictConfig:
        return composed.pop() if composed else compose(self, *arguments, **named)

    Hydra.get_mode = get_mode  # type: ignore[method-assign]
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = mode_of  # type: ignore[method-assign]
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]
