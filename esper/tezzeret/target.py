"""The seam between the pipeline and a program format."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class Target(Protocol):
    """A compiled form of kernels. Implementations hold no state, so threads may share one.

    Programs must train after ``load``: their parameters are parameters, and train and eval mode differ.
    """

    @property
    def name(self) -> str:
        """The word that names this target in configuration and metadata."""
        ...

    def compile(self, module: nn.Module) -> nn.Module:
        """The program of an eager ``module``, sharing its parameters; raises ``RuntimeError``."""
        ...

    def optimise(self, program: nn.Module, device: torch.device) -> tuple[str, ...]:
        """Changes ``program`` in place to suit ``device``; returns the names of what was changed."""
        ...

    def check(self, program: nn.Module) -> None:
        """Raises ``RuntimeError`` for a program that may do what no kernel needs, such as to open a file."""
        ...

    def save(self, program: nn.Module) -> bytes:
        """``program`` as bytes, weights included."""
        ...

    def load(self, program: bytes, device: torch.device | str = "cpu") -> nn.Module:
        """A fresh module from trusted bytes, on ``device``; raises ``RuntimeError`` if they hold none."""
        ...
