"""Where the modules of a network stand, wrapped or not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from esper.errors import GraftError
from esper.kasmina.layer import SeededLayer


@dataclass(frozen=True, slots=True)
class Place:
    """A module in a network: the parent and key under which its outermost wrapper stands."""

    parent: nn.Module
    key: str
    module: nn.Module


def unwrapped(module: nn.Module) -> nn.Module:
    """What ``module`` wraps, or itself."""
    while isinstance(module, SeededLayer):
        module = module.host
    return module


def find_place(model: nn.Module, name: str) -> Place:
    """The place of the module ``name`` of ``model``; wrappers are looked through.

    Raises:
        GraftError: there is no such module below ``model``.
    """
    places = dict(_places(unwrapped(model), ""))
    if name not in places:
        close = difflib.get_close_matches(name, places, n=3, cutoff=0.4) or list(places)[:5]
        raise GraftError(f"no module is named {name!r}", hint=f"nearest: {', '.join(close)}")
    return places[name]


def _places(parent: nn.Module, prefix: str) -> Iterator[tuple[str, Place]]:
    if isinstance(parent, torch.jit.ScriptModule):
        return  # its children cannot be replaced
    for key, child in parent._modules.items():
        if child is not None:
            yield f"{prefix}{key}", Place(parent, key, child)
            yield from _places(unwrapped(child), f"{prefix}{key}.")
