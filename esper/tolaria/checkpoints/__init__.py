"""Checkpoints of a run: sealed, whole or not there, written while training goes on.

What it has is imported when first used: to look at checkpoints does not take PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.tolaria.checkpoints.background import BackgroundSaver, Saved
    from esper.tolaria.checkpoints.folder import CheckpointFolder, Found
    from esper.tolaria.checkpoints.manifest import Manifest, Mark
    from esper.tolaria.checkpoints.retention import Retention
    from esper.tolaria.checkpoints.store import Checkpoints

__all__ = [
    "BackgroundSaver",
    "CheckpointFolder",
    "Checkpoints",
    "Found",
    "Manifest",
    "Mark",
    "Retention",
    "Saved",
]

_HOMES = {
    "background": "BackgroundSaver Saved",
    "folder": "CheckpointFolder Found",
    "manifest": "Manifest Mark",
    "retention": "Retention",
    "store": "Checkpoints",
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
