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
from torch import fx, nn

from esper.tezzeret.allowed import foreign_parts
from esper.tezzeret.archive import without_sources


class TorchScriptTarget:
    """Compiles to TorchScript. Programs keep their parameters, so they train after loading."""

    name = "torchscript"

    def compile(self, module: nn.Module) -> nn.Module:
        """``module`` as a script module that shares its parameters; raises ``RuntimeError``."""
        with _quiet():
            program: nn.Module = torch.jit.script(_bare(module))
        return program

    def optimise(self, program: nn.Module, device: torch.device) -> tuple[str, ...]:
        """Lays ``program`` out for ``device`` in place; returns the names of what was changed.

        On the CPU the weights of convolutions go channels-last: steps of four kernels took 0.13 to 1.2 times
        as long, 0.7 in the median (docs/decisions/0023). Nothing that would end training is done: freezing
        folds parameters away.
        """
        convolutions = [parameter for parameter in program.parameters() if parameter.dim() == 4]
        if device.type != "cpu" or not convolutions:
            return ()
        for weight in convolutions:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return ("channels_last",)

    def check(self, program: nn.Module) -> None:
        """Raises ``RuntimeError`` unless every method of ``program`` is made of ops that a kernel may use."""
        if found := foreign_parts(program):
            raise RuntimeError(f"the program holds what no kernel may: {', '.join(found)}")

    def save(self, program: nn.Module) -> bytes:
        """``program`` as a TorchScript archive, which names no file of this machine."""
        buffer = io.BytesIO()
        with _quiet():
            torch.jit.save(program, buffer)
        return without_sources(buffer.getvalue())

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


def _bare(module: nn.Module) -> nn.Module:
    """``module`` without what fx adds to it: the compiler reads every attribute, which took 13 of 20 ms."""
    if not isinstance(module, fx.GraphModule):
        return module
    bare: nn.Module = type("Kernel", (nn.Module,), {"forward": type(module).forward})()
    for name, child in module.named_children():
        bare.add_module(name, child)
    return bare


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield
