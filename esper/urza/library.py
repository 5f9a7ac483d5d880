"""The kernel library: what the rest of Esper asks for kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from esper.errors import LibraryError
from esper.messages import (
    CompilationRecord,
    FieldReport,
    InventionRecord,
    KernelArtefact,
    KernelMetadata,
    Slot,
)
from esper.security.audit import Action
from esper.urza.entries import Page
from esper.urza.known import Known
from esper.urza.modules import LoadedModules
from esper.urza.parts import KernelParts
from esper.urza.query import KernelQuery, Status
from esper.urza.ranking import RankedKernel, TrialContext, Wanted
from esper.urza.records import KernelRecords, recompile
from esper.urza.reports import ReportPage, ReportQuery
from esper.urza.rows import Trial
from esper.urza.sealing import Progress, Sealing, quiet
from esper.urza.tiers import TierCounts, TieredStore
from esper.urza.upkeep import Garbage

if TYPE_CHECKING:  # listing kernels must not wait for PyTorch to be imported
    from torch import nn

    Loader = Callable[[KernelMetadata, bytes], nn.Module]


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to run: its metadata, its blueprint (canonical JSON) and a module of its own."""

    metadata: KernelMetadata
    blueprint: str
    module: nn.Module


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a kernel, its signature checked."""

    metadata: KernelMetadata
    blueprint: str


class Changes(Protocol):
    """Word of changed kernels between processes; see ``esper.urza.invalidation``."""

    @property
    def listening(self) -> bool:
        """Whether word of a change would arrive."""
        ...

    def publish(self, kernel_id: str) -> None:
        """Tell the others; never raises, and never takes long."""
        ...

    def listen(self, on_change: Callable[[str | None], None]) -> None:
        """Call ``on_change`` from now on with the id of a changed kernel, or None when it may be any."""
        ...

    def close(self) -> None:
        """Tell and hear nothing more."""
        ...


class KernelLibrary:
    """Kernels by id and by the slot they fit, with the results that rank them.

    A kernel's record must be what was signed, and its bytes what was sealed and what their digest says, when
    the loader sees them: no PyTorch program is safe to load from a stranger. Every method may raise
    ``LibraryError``, ``StorageError``, or where a key is missing ``SecurityError``. Threads may share a
    library; a forked child must open its own.
    """

    def __init__(
        self,
        records: KernelRecords,
        store: TieredStore,
        loader: Loader,
        sealing: Sealing,
        *,
        modules: LoadedModules,
        changes: Changes | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """``store`` must end in the tier of the same database as ``records`` and ``sealing``.

        ``loader(metadata, program)`` makes a new module; it is called with verified bytes only. ``changes``
        carry word of changed kernels between the processes that share the record.
        """
        self.trail = records.trail
        self._records = records
        self._sealing = sealing
        self._on_close = on_close
        self._store = store
        self._parts = KernelParts(records, store)
        self._load = loader
        self._modules = modules
        self._changes = changes
        self._ahead: set[str] = set()
        self._known: Known[_Known] = Known(records.version, lambda: changes is not None and changes.listening)
        if changes is not None:
            changes.listen(self._heard)

    def note(self, action: Action) -> None:
        """Enter in the audit trail what is no change of the library itself, before it takes effect."""
        self.trail.note(action)

    def put(self, artefact: KernelArtefact) -> KernelMetadata:
        """Store a kernel, all of it or nothing, and return its metadata as it is on record.

        A kernel whose id is in the library already stays as it is.

        Raises:
            CorruptKernel: the artefact's bytes are not those that its metadata names.
        """
        stored = self._records.put(artefact)
        if stored.program_digest == artefact.metadata.program_digest:
            self._store.remember(stored.program_digest, artefact.program)
        return stored

    def contains(self, kernel_id: str) -> bool:
        """Whether the library has a kernel of that id."""
        return self._records.contains(kernel_id)

    def get(self, kernel_id: str) -> KernelMetadata:
        """The metadata of a kernel, or ``KernelNotFound``."""
        return self._records.entry(kernel_id).metadata

    def find(
        self,
        slot: Slot,
        *,
        context: TrialContext | None = None,
        tags: Collection[str] = (),
        dtype: str | None = None,
        device: str | None = None,
        limit: int = 20,
    ) -> list[KernelMetadata]:
        """As :meth:`rank`, the kernels alone."""
        wanted = Wanted(slot, context, tuple(tags), dtype, device, limit)
        return [ranked.metadata for ranked in self._records.rank(wanted)]

    def rank(self, wanted: Wanted) -> list[RankedKernel]:
        """The best validated kernels for a slot, best first, each with its chance of being kept.

        Without a context the chance is ``(kept trials + performance_score) / (trials + 1)``; with one, trials
        in like contexts count for more (see ``esper.urza.ranking``). Of equals the one with the least
        ``latency_ratio`` comes first.
        """
        return self._records.rank(wanted)

    def query(self, query: KernelQuery) -> list[KernelMetadata]:
        """The kernels that ``query`` describes, in its order; ``ConfigError`` for a sort that is none."""
        return list(self._records.page(query).kernels)

    def page(self, query: KernelQuery) -> Page:
        """As :meth:`query`, with what ``KernelQuery.after`` takes to go on from there."""
        return self._records.page(query)

    def fetch(self, kernel_id: str) -> Kernel:
        """A kernel ready to run, its module not shared with any other call.

        Raises:
            KernelNotFound: the library has no kernel of that id.
            CorruptKernel: stored bytes do not match their digest, or are gone; nothing was loaded.
            LibraryError: the bytes are good, yet this version of PyTorch cannot load them.
        """
        program: bytes | None = None
        known = self._known.get(kernel_id)
        if known is None:
            known, program = self._read(kernel_id)
        metadata = known.metadata
        module = self._modules.take(
            _module_key(metadata), metadata.program_bytes, lambda: self._loaded(metadata, program)
        )
        return Kernel(metadata, known.blueprint, module)

    def blueprint(self, kernel_id: str) -> str:
        """The blueprint of a kernel, canonical JSON; raises as :meth:`fetch` does, and loads nothing."""
        digest = self._records.entry(kernel_id).digests["blueprint"]
        return self._parts.one(kernel_id, "blueprint", digest).decode()

    def prefetch(self, kernels: Iterable[KernelMetadata]) -> None:
        """Have the programs of ``kernels`` fetched into nearer tiers in the background, each once.

        Returns at once and never raises.
        """
        digests = [metadata.program_digest for metadata in kernels]
        self._store.prefetch(lambda: self._not_ahead(digests))

    def prefetch_best(self, wanted: Sequence[Wanted]) -> None:
        """As :meth:`prefetch` for the best kernels for each of ``wanted``, found in the background too."""
        self._store.prefetch(
            lambda: self._not_ahead(
                ranked.metadata.program_digest for each in wanted for ranked in self._records.rank(each)
            )
        )

    def artefact(self, kernel_id: str) -> KernelArtefact:
        """A kernel as another library's :meth:`put` takes it, read from the record and checked.

        Raises as :meth:`fetch` does, and loads nothing.
        """
        entry = self._records.entry(kernel_id)
        parts = {
            part: self._parts.on_record(kernel_id, part, digest) for part, digest in entry.digests.items()
        }
        return KernelArtefact(entry.metadata, parts["blueprint"].decode(), parts["program"], parts["weights"])

    def verify(self, kernel_id: str) -> None:
        """Read every part of a kernel from the record itself, past all caches, and check it.

        Raises:
            KernelNotFound: the library has no kernel of that id.
            CorruptKernel: a part is missing, or is not what was sealed or what its digest says.
        """
        self.artefact(kernel_id)

    def set_status(self, kernel_id: str, status: Status) -> None:
        """Retire a kernel, so that no slot is offered it, or bring it back; or ``KernelNotFound``."""
        self._records.set_status(kernel_id, status)
        self._changed(kernel_id)

    def set_tags(self, kernel_id: str, tags: Collection[str]) -> None:
        """Give a kernel ``tags``, in their order, in place of those that it has; or ``KernelNotFound``."""
        self._records.set_tags(kernel_id, tags)
        self._changed(kernel_id)

    def remove(self, kernel_id: str) -> None:
        """Remove a kernel and every blob that no other refers to; ``KernelNotFound`` if it is not there."""
        for digest in self._records.remove(kernel_id):
            self._store.evict(digest)
        self._changed(kernel_id)

    def gc(self, *, retired_days: float | None = None, dry_run: bool = False) -> Garbage:
        """Take out, or with ``dry_run`` only name, blobs that no kernel refers to and old retired kernels.

        Old is one that was made more than ``retired_days`` ago and kept in no trial; None spares them all.
        """
        garbage = self._records.collect_garbage(retired_days=retired_days, dry_run=dry_run)
        if not dry_run:
            for digest in garbage.blobs:
                self._store.evict(digest)
            for kernel_id in garbage.kernels:
                self._changed(kernel_id)
        return garbage

    def adopt(self, progress: Progress = quiet) -> int:
        """Seal the kernels of a library that was not sealed; how many they were. Vouches for all of them."""
        return self._sealing.adopt(progress)

    def reseal(self, progress: Progress = quiet) -> int:
        """Wrap and sign everything with the key that seals now; how many blobs and records were not.

        ``progress(done, total)`` is called after each batch. May be stopped at any point and begun again.
        """
        return self._sealing.reseal(progress)

    def sealed_by(self) -> dict[str, int]:
        """How many blobs and records each key is needed for, by its id."""
        return self._sealing.sealed_by()

    def record_trial(self, report: FieldReport, run_id: str) -> None:
        """Store what a trial of a kernel showed; it counts in ``find`` from now on.

        A second report of the same place and first epoch of a run replaces the first.
        """
        self._records.record_trial(Trial(run_id, report))

    def trials(self, kernel_id: str | None = None) -> list[Trial]:
        """The trials of a kernel, or of all, oldest first; those of a removed kernel are still there."""
        return self._records.trials(kernel_id)

    def reports(self, query: ReportQuery) -> ReportPage:
        """The reports of trials that ``query`` describes, newest first; raises ``ConfigError``."""
        return self._records.reports(query)

    def record_invention(self, record: InventionRecord) -> None:
        """Store what was invented; a second record of a graph for a slot replaces the first."""
        self._records.record_invention(record)

    def inventions(self, kernel_id: str | None = None) -> list[InventionRecord]:
        """What a kernel was invented as, or all inventions, oldest first; also of removed kernels."""
        return self._records.inventions(kernel_id)

    def record_compilation(self, record: CompilationRecord) -> None:
        """Add one attempt to the log of compilations."""
        self._records.record_compilation(record)

    def compilations(self) -> list[CompilationRecord]:
        """The log of attempts to compile, oldest first."""
        return self._records.compilations()

    def tier_counts(self) -> dict[str, TierCounts]:
        """What loaded kernels and each tier were asked since it was opened, nearest first."""
        return {"loaded": TierCounts(*self._modules.counts()), **self._store.tier_counts()}

    def close(self) -> None:
        """End what runs in the background and close the database."""
        if self._changes is not None:
            self._changes.close()
        self._modules.close()
        self._store.close()
        self._records.close()
        self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _not_ahead(self, digests: Iterable[str]) -> list[str]:
        """Those of ``digests`` that were not fetched ahead; called by the one thread that does it."""
        new = [digest for digest in dict.fromkeys(digests) if digest not in self._ahead]
        self._ahead.update(new)
        return new

    def _read(self, kernel_id: str) -> tuple[_Known, bytes | None]:
        """What is on record of a kernel, and its program, asked for together, if it is not loaded already."""
        ticket = self._known.ticket()
        entry = self._records.entry(kernel_id)
        digests = dict(entry.digests)
        del digests["weights"]
        if self._modules.holds(_module_key(entry.metadata)):
            del digests["program"]
        parts = self._parts.several(kernel_id, digests)
        known = _Known(entry.metadata, parts["blueprint"].decode())
        self._known.put(kernel_id, known, ticket)
        return known, parts.get("program")

    def _loaded(self, metadata: KernelMetadata, program: bytes | None) -> nn.Module:
        kernel_id = metadata.kernel_id
        if program is None:
            program = self._parts.one(kernel_id, "program", metadata.program_digest)
        try:
            return self._load(metadata, program)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise LibraryError(
                f"kernel {kernel_id!r} cannot be loaded: {reason}", hint=recompile(kernel_id)
            ) from error

    def _heard(self, kernel_id: str | None) -> None:
        self._known.forget(kernel_id)
        if kernel_id is None:
            self._store.forget_absent()

    def _changed(self, kernel_id: str) -> None:
        self._known.forget(kernel_id)
        if self._changes is not None:
            self._changes.publish(kernel_id)


def _module_key(metadata: KernelMetadata) -> Hashable:
    return metadata.program_digest, metadata.device
