"""Esper: train PyTorch networks that grow while they train.

The names of ``__all__`` are the public API; everything else may change. They are imported when first used, so
``import esper`` does not wait for PyTorch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper.blueprint import Blueprint, load_blueprints
    from esper.errors import EsperError
    from esper.kasmina import (
        SeededLayer,
        drain,
        graft,
        observe,
        pop_faults,
        seed_off,
        seeded_layers,
        unwrap,
        wrap,
    )
    from esper.messages import AdaptationDecision, KernelMetadata, SeedState, Slot, SystemStatePacket
    from esper.urza import KernelLibrary, open_library

__all__ = [
    "AdaptationDecision",
    "Blueprint",
    "EsperError",
    "KernelLibrary",
    "KernelMetadata",
    "SeedState",
    "SeededLayer",
    "Slot",
    "SystemStatePacket",
    "drain",
    "graft",
    "load_blueprints",
    "observe",
    "open_library",
    "pop_faults",
    "seed_off",
    "seeded_layers",
    "unwrap",
    "wrap",
]

__version__ = version("esper-morph")

_HOMES = {
    "esper.blueprint": "Blueprint load_blueprints",
    "esper.errors": "EsperError",
    "esper.kasmina": "SeededLayer drain graft observe pop_faults seed_off seeded_layers unwrap wrap",
    "esper.messages": "AdaptationDecision KernelMetadata SeedState Slot SystemStatePacket",
    "esper.urza": "KernelLibrary open_library",
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'esper' has no attribute {name!r}")
