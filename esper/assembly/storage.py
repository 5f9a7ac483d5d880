"""The kernel library of a configuration. Importing this does not import PyTorch."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from esper.assembly.configured import check_targets, configured
from esper.errors import ConfigError
from esper.messages import KernelMetadata
from esper.urza.library import KernelLibrary, open_library

if TYPE_CHECKING:
    from torch import nn


def build_library(cfg: DictConfig) -> KernelLibrary:
    """The kernel library that ``cfg.urza`` describes; raises ConfigError, LibraryError or StorageError.

    What loads its kernels is made when the first of them is fetched.
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

    return open_library(cfg.urza.url, load, memory_bytes=cfg.urza.memory_bytes)
