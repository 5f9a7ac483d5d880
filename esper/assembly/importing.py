"""Kernels from files into a library, and from a library into files."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from esper.assembly.configured import configured
from esper.assembly.kernels import build_pipeline
from esper.blueprint import Blueprint
from esper.errors import RefusedProgram, StorageError
from esper.messages import KernelMetadata, Slot
from esper.tezzeret.importing import Importer
from esper.tezzeret.kernelfile import write_kernel
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.worker import record_of
from esper.tolaria.durable import write_atomically
from esper.urza.library import KernelLibrary

MAX_BYTES = 256 * 2**20
"""Of a file: twice what the largest kernel of the usual budget has, in 64 bits."""


@dataclass(frozen=True, slots=True)
class Import:
    """What became of one file, and in how long: the kernel, and whether it is new; or why it was refused."""

    file: Path
    seconds: float
    kernel: KernelMetadata | None = None
    new: bool = False
    error: RefusedProgram | None = None


def import_files(
    cfg: DictConfig,
    library: KernelLibrary,
    files: Iterable[Path],
    of: tuple[Blueprint, Slot] | None = None,
    *,
    starting: Callable[[Path], None] = lambda _: None,
) -> Iterator[Import]:
    """Make a kernel of each file, as ``cfg.tezzeret`` says, and store it; a refused one stops no other.

    ``of`` says what TorchScript programs among the files compute. Raises CompilationError where no worker
    can be started, ConfigError where there are none (see ``WorkerPool``), and what the library raises.
    """
    pipeline = build_pipeline(cfg)
    with WorkerPool(1, configured(cfg, "tezzeret.limits")) as pool:
        importer = Importer(pipeline, pool)
        for file in files:
            starting(file)
            began = time.perf_counter()
            try:
                job, outcome = importer.kernel(_read(file), of)
            except RefusedProgram as error:
                yield Import(file, time.perf_counter() - began, error=error)
                continue
            assert outcome.artefact is not None  # or it would have been refused
            new = not library.contains(outcome.artefact.metadata.kernel_id)
            kernel = library.put(outcome.artefact)
            if new:
                library.record_compilation(record_of(job, outcome))
            yield Import(file, time.perf_counter() - began, kernel, new)


def export_kernel(library: KernelLibrary, kernel_id: str, file: Path) -> int:
    """Write the file of a kernel, whole or not at all; its size in bytes.

    Raises StorageError, and what the library raises: KernelNotFound, CorruptKernel.
    """
    data = write_kernel(library.artefact(kernel_id))
    try:
        write_atomically(file, data)
    except OSError as error:
        raise StorageError.from_os(error, file, "writing") from error
    return len(data)


def _read(file: Path) -> bytes:
    """All of a plain file, of bounded size. Raises RefusedProgram."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for ever
        with os.fdopen(descriptor, "rb") as source:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RefusedProgram("it is no plain file")
            data = source.read(MAX_BYTES + 1)
    except OSError as error:
        raise RefusedProgram(f"it cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RefusedProgram(f"it is larger than {MAX_BYTES >> 20} MiB")
    return data
