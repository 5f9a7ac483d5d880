"""Kernels from one library to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from esper.errors import CorruptKernel
from esper.messages import KernelMetadata
from esper.urza.library import KernelLibrary


def copy_kernels(
    source: KernelLibrary,
    target: KernelLibrary,
    kernels: Iterable[KernelMetadata],
    tell: Callable[[KernelMetadata, bool, CorruptKernel | None], None],
) -> None:
    """Store in ``target`` those of ``kernels`` that it lacks, each checked as it is read.

    ``tell`` learns of each kernel, whether it was copied, and why it must not spread, which stops no other.
    Stopped in the middle, it is begun again at no cost. Raises what else the libraries raise.
    """
    for kernel in kernels:
        new, corrupt = not target.contains(kernel.kernel_id), None
        if new:
            try:
                target.put(source.artefact(kernel.kernel_id))
            except CorruptKernel as error:
                new, corrupt = False, error
        tell(kernel, new, corrupt)
