"""A configuration of what ships is composed once a process: that takes 0.1 s, and a copy of it 2 ms.

So is one that a run has saved. What lies in the folder of a test (``./conf``, ``./experiments``) is composed
each time, and so is what cannot be composed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import DictConfig

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
    if places.keys() != _PROVIDERS or any(override.startswith("hydra.") for override in overrides):
        return _compose(loader, config_name, overrides, run_mode, **how)
    saved = Path(places["main"], f"{config_name}.yaml").read_bytes()
    key = (saved, *overrides, run_mode, *how.items(), config_name, JobRuntime().get("name"))
    if key not in _composed:
        _composed[key] = pickle.dumps(_compose(loader, config_name, overrides, run_mode, **how))
    cfg: DictConfig = pickle.loads(_composed[key])
    cfg.hydra.runtime.cwd = str(Path.cwd())
    return cfg
