"""TorchScript: the compiled form that seeds run. The only file that calls torch.jit.

torch deprecates TorchScript with a warning at every call. It stays the target that was asked for, so the
warning is silenced here and nowhere else; ``esper.tezzeret.target`` is the seam for another one.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class TorchScriptTarget:
    """Compiles to TorchScript. Programs keep their parameters, so they train after loading."""

    name = "torchscript"

    def compile(self, module: nn.Module) -> nn.Module:
        """``module`` as a script module that shares its parameters."""
        with _quiet():
            return torch.jit.script(module)

    def save(self, program: nn.Module) -> bytes:
        """``program`` as a TorchScript archive."""
        buffer = io.BytesIO()
        with _quiet():
            torch.jit.save(program, buffer)
        return buffer.getvalue()

    def load(self, program: bytes, device: torch.device | str = "cpu") -> nn.Module:
        """A fresh trainable module from ``program``.

        Loading executes what the archive says: give it only bytes whose digest or signature was checked.
        """
        with _quiet():
            module = _load(io.BytesIO(program), map_location=device)
        if not isinstance(module, nn.Module):
            raise TypeError(f"the program holds a {type(module).__name__}")
        return module


_load: Callable[..., object] = torch.jit.load  # torch gives it no types


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # About torch's own GraphModule.__init__, which is not compiled.
        warnings.filterwarnings("ignore", "The TorchScript type system", category=UserWarning)
        yield
