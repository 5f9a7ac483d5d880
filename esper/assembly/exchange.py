"""Kernels from one library to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from esper.messages import KernelMetadata
from esper.urza.library import KernelLibrary


def copy_kernels(
    source: KernelLibrary,
    target: KernelLibrary,
    kernels: Iterable[KernelMetadata],
    tell: Callable[[KernelMetadata, bool], None] = lambda *_: None,
) -> int:
    """Store in ``target`` those of ``kernels`` that it lacks, each checked as it is read; how many they were.

    ``tell`` learns of each kernel, and whether it was copied. Stopped in the middle, it is begun again at no
    cost. Raises what the libraries raise: CorruptKernel for one that must not spread.
    """
    copied = 0
    for kernel in kernels:
        new = not target.contains(kernel.kernel_id)
        if new:
            target.put(source.artefact(kernel.kernel_id))
            copied += 1
        tell(kernel, new)
    return copied
