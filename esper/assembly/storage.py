"""The kernel library of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esper.assembly.configured import check_targets, configured
from esper.assembly.keys import build_envelope
from esper.errors import ConfigError
from esper.messages import KernelMetadata
from esper.urza.library import KernelLibrary, open_library

if TYPE_CHECKING:
    from torch import nn


def build_library(
    cfg: DictConfig, *, on_key_made: Callable[[str], None] = lambda _: None, adopt_later: bool = False
) -> KernelLibrary:
    """The kernel library that ``cfg.urza`` describes, sealed with the keys of ``cfg.security``.

    What loads its kernels is made when the first of them is fetched. ``on_key_made`` is told where a key lies
    that was made for it. A library of an older version is sealed with a key that was made just now; one that
    is not sealed though there are keys is refused, unless ``adopt_later`` leaves that to its ``adopt``.
    Raises ConfigError, LibraryError, StorageError or SecurityError.
    """
    check_targets(cfg, "tezzeret.target")
    if cfg.urza.memory_bytes < 0:
        raise ConfigError(f"urza.memory_bytes must be at least 0, not {cfg.urza.memory_bytes}")

    @cache
    def target() -> Any:
        return configured(cfg, "tezzeret.target")

    def load(metadata: KernelMetadata, program: bytes) -> nn.Module:
        module: nn.Module = target().load(program, metadata.device)
        return module

    made: list[str] = []

    def key_made(place: str) -> None:
        made.append(place)
        on_key_made(place)

    return open_library(
        cfg.urza.url,
        load,
        envelope=build_envelope(cfg, key_made),
        memory_bytes=cfg.urza.memory_bytes,
        adopting=lambda: bool(made),
        adopt_later=adopt_later,
    )
