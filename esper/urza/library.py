"""The kernel library: what the rest of Esper asks for kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, NoReturn, Self

from esper.errors import CorruptKernel, KernelNotFound, LibraryError
from esper.messages import CompilationRecord, FieldReport, KernelArtefact, KernelMetadata, Slot
from esper.urza.database import open_database
from esper.urza.memory import MemoryTier
from esper.urza.query import KernelQuery, Status
from esper.urza.records import KernelRecords
from esper.urza.rows import Trial
from esper.urza.sql import SqlTier
from esper.urza.tiers import MISSING, TieredStore, digest_of

if TYPE_CHECKING:  # listing kernels must not wait for PyTorch to be imported
    from torch import nn

    Loader = Callable[[KernelMetadata, bytes], nn.Module]

MEMORY_BYTES: Final = 256 * 2**20
"""How much the nearest tier holds unless told otherwise: thousands of kernels of the shipped families."""


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to run: its metadata, its blueprint (canonical JSON) and a module of its own."""

    metadata: KernelMetadata
    blueprint: str
    module: nn.Module


class KernelLibrary:
    """Kernels by id and by the slot they fit, with the results that rank them.

    Bytes come through the tiers and are checked against their digest before the loader sees them, for no
    PyTorch program is safe to load from a stranger. Every method may raise ``LibraryError`` or
    ``StorageError``. Threads may share a library; a forked child must open its own.
    """

    def __init__(self, records: KernelRecords, store: TieredStore, loader: Loader) -> None:
        """``store`` must end in the tier of the same database as ``records``.

        ``loader(metadata, program)`` makes a new module; it is called with verified bytes only.
        """
        self._records = records
        self._store = store
        self._load = loader

    def put(self, artefact: KernelArtefact) -> KernelMetadata:
        """Store a kernel, all of it or nothing, and return its metadata as it is on record.

        A kernel whose id is in the library already stays as it is.

        Raises:
            CorruptKernel: the artefact's bytes are not those that its metadata names.
        """
        return self._records.put(artefact)

    def contains(self, kernel_id: str) -> bool:
        """Whether the library has a kernel of that id."""
        return self._records.contains(kernel_id)

    def get(self, kernel_id: str) -> KernelMetadata:
        """The metadata of a kernel, or ``KernelNotFound``."""
        return self._records.entry(kernel_id).metadata

    def find(self, slot: Slot, *, tags: Collection[str] = (), limit: int = 20) -> list[KernelMetadata]:
        """The ``limit`` best validated kernels that fit ``slot``, best first; of any of ``tags`` if given.

        Best is the greatest ``(kept trials + performance_score) / (trials + 1)``, then the least
        ``latency_ratio``.
        """
        return self._records.find(slot, tags, limit)

    def query(self, query: KernelQuery) -> list[KernelMetadata]:
        """The kernels that ``query`` describes, in its order; ``ConfigError`` for a sort that is none."""
        return self._records.query(query)

    def fetch(self, kernel_id: str) -> Kernel:
        """A kernel ready to run, its module not shared with any other call.

        Raises:
            KernelNotFound: the library has no kernel of that id.
            CorruptKernel: stored bytes do not match their digest, or are gone; nothing was loaded.
            LibraryError: the bytes are good, yet this version of PyTorch cannot load them.
        """
        entry = self._records.entry(kernel_id)
        program = self._part(kernel_id, "program", entry.digests["program"])
        blueprint = self._part(kernel_id, "blueprint", entry.digests["blueprint"])
        try:
            module = self._load(entry.metadata, program)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise LibraryError(
                f"kernel {kernel_id!r} cannot be loaded: {reason}", hint=_recompile(kernel_id)
            ) from error
        return Kernel(entry.metadata, blueprint.decode(), module)

    def blueprint(self, kernel_id: str) -> str:
        """The blueprint of a kernel, canonical JSON; raises as :meth:`fetch` does, and loads nothing."""
        digest = self._records.entry(kernel_id).digests["blueprint"]
        return self._part(kernel_id, "blueprint", digest).decode()

    def verify(self, kernel_id: str) -> None:
        """Read every part of a kernel from the record itself, past all caches, and check it.

        Raises:
            KernelNotFound: the library has no kernel of that id.
            CorruptKernel: a part is missing, or does not match its digest.
        """
        for part, digest in self._records.entry(kernel_id).digests.items():
            data = self._records.blob(digest)
            if data is MISSING:
                self._raise_missing(kernel_id, part)
            elif digest_of(data) != digest:
                raise _corrupt(kernel_id, f"the digest of its {part} does not match")

    def set_status(self, kernel_id: str, status: Status) -> None:
        """Retire a kernel, so that no slot is offered it, or bring it back; or ``KernelNotFound``."""
        self._records.set_status(kernel_id, status)

    def remove(self, kernel_id: str) -> None:
        """Remove a kernel and every blob that no other refers to; ``KernelNotFound`` if it is not there."""
        for digest in self._records.remove(kernel_id):
            self._store.evict(digest)

    def record_trial(self, report: FieldReport, run_id: str, task: str) -> None:
        """Store what a trial of a kernel showed; it counts in ``find`` from now on.

        A second report of the same place and first epoch of a run replaces the first.
        """
        self._records.record_trial(Trial(run_id, task, report))

    def trials(self, kernel_id: str | None = None) -> list[Trial]:
        """The trials of a kernel, or of all, oldest first; those of a removed kernel are still there."""
        return self._records.trials(kernel_id)

    def record_compilation(self, record: CompilationRecord) -> None:
        """Add one attempt to the log of compilations."""
        self._records.record_compilation(record)

    def compilations(self) -> list[CompilationRecord]:
        """The log of attempts to compile, oldest first."""
        return self._records.compilations()

    def cache_counts(self) -> dict[str, tuple[int, int]]:
        """Hits and misses of each tier since the library was opened, nearest tier first."""
        return self._store.counts()

    def close(self) -> None:
        """Close the database."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _part(self, kernel_id: str, part: str, digest: str) -> bytes:
        try:
            data = self._store.get(digest)
        except CorruptKernel as error:
            raise _corrupt(kernel_id, f"the digest of its {part} does not match") from error
        if data is MISSING:
            self._raise_missing(kernel_id, part)
        return data

    def _raise_missing(self, kernel_id: str, part: str) -> NoReturn:
        # Another process may have removed the kernel between our two reads; then nothing is corrupt.
        if not self._records.contains(kernel_id):
            raise KernelNotFound(kernel_id)
        raise _corrupt(kernel_id, f"its {part} is missing")


def open_library(url: str, loader: Loader, *, memory_bytes: int = MEMORY_BYTES) -> KernelLibrary:
    """The library at ``url``, behind ``memory_bytes`` of memory; made if it is not there.

    ``url`` is ``sqlite:///PATH``, or ``sqlite://`` for a library that lives until it is closed. Raises as
    :func:`esper.urza.database.open_database` does.
    """
    database = open_database(url)
    store = TieredStore([MemoryTier(memory_bytes), SqlTier(database)])
    return KernelLibrary(KernelRecords(database), store, loader)


def _corrupt(kernel_id: str, reason: str) -> CorruptKernel:
    return CorruptKernel(f"kernel {kernel_id!r} is corrupt: {reason}", hint=_recompile(kernel_id))


def _recompile(kernel_id: str) -> str:
    return f"remove it with: esper kernels rm {kernel_id}, then compile its blueprint again"
