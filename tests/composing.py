"""A configuration of what ships is composed once a process: that takes 0.1 s, and a copy of it 2 ms.

What lies in the folder of a test or of a run (``./conf``, ``./experiments``, a saved configuration) is
composed each time; so is what cannot be composed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

from esper_cli.folders import shipped

_PROVIDERS = {"hydra", "main", "esper experiments", "schema"}
_compose = ConfigLoaderImpl.load_configuration
_composed: dict[Any, bytes] = {}


def remember() -> None:
    """Have Hydra's loader remember from here on."""
    ConfigLoaderImpl.load_configuration = _load  # type: ignore[method-assign, assignment]


def _load(
    loader: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode, **how: bool
) -> DictConfig:
    places = {each.provider: each.path for each in loader.get_search_path().get_path()}
    foreign = places.keys() != _PROVIDERS or places["main"] != str(shipped("conf"))
    if foreign or any(override.startswith("hydra.") for override in overrides):
        return _compose(loader, config_name, overrides, run_mode, **how)
    key = (config_name, *overrides, run_mode, *how.items(), JobRuntime().get("name"))
    if key not in _composed:
        _composed[key] = pickle.dumps(_compose(loader, config_name, overrides, run_mode, **how))
    cfg: DictConfig = pickle.loads(_composed[key])
    cfg.hydra.runtime.cwd = str(Path.cwd())
    return cfg
