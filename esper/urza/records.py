"""The record of kernels, of the attempts to compile them, and of their trials in runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import Connection, RowMapping, delete, exists, func, insert, or_, select, update

from esper.errors import CorruptKernel, KernelNotFound
from esper.messages import CompilationRecord, InventionRecord, KernelArtefact, KernelMetadata
from esper.security.audit import digest_of as audit_digest
from esper.security.privacy import without_places
from esper.urza.artefacts import checked_blobs
from esper.urza.database import Database
from esper.urza.entries import KernelEntry, Page, entry_by_id, entry_of, find_entry, standing_of, with_tags
from esper.urza.query import KernelQuery, Status, cursor_after, matching, tag_groups
from esper.urza.ranking import RankedKernel, Wanted, error_of, ranking
from esper.urza.reports import ReportPage, ReportQuery, report_page
from esper.urza.rows import (
    Trial,
    compilation_record,
    compilation_values,
    invention_record,
    invention_values,
    kernel_values,
    tag_values,
    trial_of,
    trial_values,
)
from esper.urza.schema import BlobRow, CompilationRow, InventionRow, KernelRow, KernelTagRow, TrialRow
from esper.urza.seals import Seals
from esper.urza.sql import SqlTier, read_blob, write_blob
from esper.urza.tags import is_scarce
from esper.urza.tiers import MISSING, Missing, digest_of
from esper.urza.trail import LibraryTrail
from esper.urza.upkeep import Garbage, collect_garbage


class KernelRecords:
    """The tables of the library behind plain records. Threads may share it, processes share the database.

    Every method may raise ``LibraryError`` (the database is locked or damaged) or ``StorageError`` (disk
    full, read-only, I/O error), after which nothing of what it was doing is stored.
    """

    def __init__(
        self, database: Database, seals: Seals | None = None, trail: LibraryTrail | None = None
    ) -> None:
        """Over an open ``database``, which this then owns.

        Without ``seals`` nothing is sealed or signed; each change has its entry in ``trail``.
        """
        self._database = database
        self.trail = trail or LibraryTrail(database, None)
        self._blobs = SqlTier(database)
        self._seals = seals or Seals(None)

    def put(self, artefact: KernelArtefact) -> KernelMetadata:
        """Store a kernel, its blobs and its tags, all or nothing, and return it as it is on record.

        A kernel whose id is on record stays as it is; a damaged copy of a part it shares is mended.

        Raises:
            CorruptKernel: the artefact's bytes are not those that its metadata names.
            LibraryError: its metadata holds what the record cannot.
        """
        blobs = checked_blobs(artefact)
        metadata = replace(
            artefact.metadata,
            program_bytes=len(artefact.program),
            weights_bytes=len(artefact.weights),
            tags=tuple(dict.fromkeys(artefact.metadata.tags)),
            created_at=artefact.metadata.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        )
        blueprint_digest = digest_of(artefact.blueprint.encode())
        signature = self._seals.sign(metadata, blueprint_digest)
        with self.trail.changing() as change:
            connection = change.connection
            entry = find_entry(connection, metadata.kernel_id)
            if entry is None:
                new = KernelEntry(metadata, blueprint_digest, signature)
                self._write_blobs(connection, blobs)
                _insert(connection, new)
                change.note("kernel.stored", metadata.kernel_id, after=new.digest, name=metadata.name)
                return metadata
            self._check(entry)
            parts = set(entry.digests.values())
            if self._write_blobs(
                connection, {digest: data for digest, data in blobs.items() if digest in parts}
            ):
                change.note("kernel.mended", metadata.kernel_id, after=entry.digest)
            return entry.metadata

    def entry(self, kernel_id: str) -> KernelEntry:
        """The kernel of that id, or ``KernelNotFound``; ``CorruptKernel`` if it is not what was signed."""
        entry = entry_by_id(self._database, kernel_id)
        self._check(entry)
        return entry

    def version(self) -> int | None:
        """A number that is another one after anybody committed a change, or None if that cannot be told."""
        return self._database.version()

    def contains(self, kernel_id: str) -> bool:
        """Whether a kernel of that id is on record."""
        with self._database.reading() as connection:
            return connection.scalar(select(exists().where(KernelRow.kernel_id == kernel_id))) is True

    def blob(self, digest: str) -> bytes | Missing:
        """The bytes on record whose SHA-256 is ``digest``, ``MISSING``, or ``CorruptKernel``."""
        stored = self._blobs.get(digest)
        return MISSING if stored is MISSING else self._seals.open(digest, stored)

    def rank(self, wanted: Wanted) -> list[RankedKernel]:
        """The validated kernels that are ``wanted``, best first; see ``esper.urza.ranking``."""
        with self._database.reading() as connection:
            scarce = is_scarce(connection, wanted.tags, wanted.slot)
            rows = connection.execute(ranking(wanted, scarce)).mappings().all()
            kernels = with_tags(connection, rows)
        return [
            RankedKernel(entry.metadata, row["score"], error_of(row["score"], row["weight"]))
            for entry, row in zip(kernels, rows, strict=True)
        ]

    def page(self, query: KernelQuery) -> Page:
        """The kernels that ``query`` describes, in its order; ``ConfigError`` for a sort that is none."""
        with self._database.reading() as connection:
            rare = next((tags for tags in tag_groups(query) if is_scarce(connection, tags)), None)
            most = None if query.limit is None else query.limit + 1  # one more tells whether that is all
            rows: list[RowMapping] = []
            for statement in matching(query, rare):
                left = None if most is None else most - len(rows)
                rows += connection.execute(statement.limit(left)).mappings()
                if len(rows) == most:
                    break
            more = len(rows) == most
            rows = rows[: query.limit]
            kernels = tuple(entry.metadata for entry in with_tags(connection, rows))
        return Page(
            kernels, tuple(standing_of(row) for row in rows), cursor_after(query, rows[-1]) if more else None
        )

    def set_tags(self, kernel_id: str, tags: Collection[str]) -> None:
        """Give a kernel these tags in place of those that it has; or ``KernelNotFound``."""
        with self.trail.changing() as change:
            metadata = entry_of(change.connection, kernel_id).metadata
            before, after = list(metadata.tags), list(dict.fromkeys(tags))
            if before == after:
                return
            change.connection.execute(delete(KernelTagRow).where(KernelTagRow.kernel_id == kernel_id))
            _insert_tags(change.connection, metadata, tags)
            added, gone = ([tag for tag in a if tag not in b] for a, b in ((after, before), (before, after)))
            digests = audit_digest(before), audit_digest(after)
            change.note("kernel.tagged", kernel_id, *digests, added=added, removed=gone)

    def set_status(self, kernel_id: str, status: Status) -> None:
        """Retire a kernel, so that no slot is offered it, or bring it back; or ``KernelNotFound``."""
        here = KernelRow.kernel_id == kernel_id
        with self.trail.changing() as change:
            before = change.connection.scalar(select(KernelRow.status).where(here))
            if before is None:
                raise KernelNotFound(kernel_id)
            if before == status:
                return
            change.connection.execute(update(KernelRow).where(here).values(status=status))
            digests = audit_digest(before), audit_digest(status)
            change.note("kernel.status", kernel_id, *digests, was=before, now=status)

    def remove(self, kernel_id: str) -> list[str]:
        """Remove a kernel and what no other kernel refers to; the digests of the blobs that went.

        Its trials stay: the id comes from the content, so they hold for the same kernel compiled again.

        Raises:
            KernelNotFound: no kernel of that id is on record.
        """
        with self.trail.changing() as change:
            connection, entry = change.connection, entry_of(change.connection, kernel_id)
            parts = set(entry.digests.values())
            change.note("kernel.removed", kernel_id, before=entry.digest, name=entry.metadata.name)
            connection.execute(delete(KernelRow).where(KernelRow.kernel_id == kernel_id))
            columns = (KernelRow.program_digest, KernelRow.weights_digest, KernelRow.blueprint_digest)
            in_use = exists().where(or_(*[column == BlobRow.digest for column in columns]))
            unused = delete(BlobRow).where(BlobRow.digest.in_(parts), ~in_use).returning(BlobRow.digest)
            return list(connection.scalars(unused))

    def record_trial(self, trial: Trial) -> None:
        """Store the result of a trial; it counts in the rank of its kernel from now on.

        A seed has one trial at a time, so one that started at the same place and epoch of the same run, as
        after a resumption, replaces the earlier result.
        """
        report = trial.report
        replaced = delete(TrialRow).where(
            TrialRow.run_id == trial.run_id,
            TrialRow.layer == report.layer,
            TrialRow.seed_idx == report.seed_idx,
            TrialRow.started_epoch == report.started_epoch,
        )
        values = trial_values(trial)
        with self.trail.changing() as change:
            connection = change.connection
            changed = {report.kernel_id, *connection.scalars(replaced.returning(TrialRow.kernel_id))}
            connection.execute(insert(TrialRow).values(values))
            place = f"{trial.run_id}: {report.layer} seed {report.seed_idx}"
            digest = audit_digest(values)
            change.note("trial.recorded", report.kernel_id, after=digest, at=place, verdict=report.verdict)
            for kernel_id in changed:
                tally = update(KernelRow).where(KernelRow.kernel_id == kernel_id)
                connection.execute(tally.values(_tally(connection, kernel_id)))

    def trials(self, kernel_id: str | None = None) -> list[Trial]:
        """The trials of a kernel, or of all, oldest first; those of a removed kernel are still there."""
        statement = select(TrialRow.__table__).order_by(TrialRow.id)
        if kernel_id is not None:
            statement = statement.where(TrialRow.kernel_id == kernel_id)
        with self._database.reading() as connection:
            return [trial_of(row) for row in connection.execute(statement).mappings()]

    def reports(self, query: ReportQuery) -> ReportPage:
        """As :func:`esper.urza.reports.report_page` does."""
        with self._database.reading() as connection:
            return report_page(connection, query)

    def record_invention(self, record: InventionRecord) -> None:
        """Store what was invented, in place of an earlier record of the same graph for the same slot."""
        values = invention_values(record) | {"failure": _said(record.failure)}
        same = [
            getattr(InventionRow, name) == values[name]
            for name in ("graph_id", "layout", "in_features", "out_features", "stride")
        ]
        with self._database.writing() as connection:
            connection.execute(delete(InventionRow).where(*same))
            connection.execute(insert(InventionRow).values(values))

    def inventions(self, kernel_id: str | None = None) -> list[InventionRecord]:
        """What a kernel was invented as, or all inventions, oldest first."""
        statement = select(InventionRow.__table__).order_by(InventionRow.id)
        if kernel_id is not None:
            statement = statement.where(InventionRow.kernel_id == kernel_id)
        with self._database.reading() as connection:
            return [invention_record(row) for row in connection.execute(statement).mappings()]

    def record_compilation(self, record: CompilationRecord) -> None:
        """Add one attempt to the log of compilations."""
        with self._database.writing() as connection:
            values = compilation_values(record)
            connection.execute(insert(CompilationRow).values(values | {"reason": _said(record.reason)}))

    def compilations(self) -> list[CompilationRecord]:
        """The log of attempts to compile, oldest first."""
        statement = select(CompilationRow.__table__).order_by(CompilationRow.id)
        with self._database.reading() as connection:
            return [compilation_record(row) for row in connection.execute(statement).mappings()]

    def collect_garbage(self, *, retired_days: float | None, dry_run: bool) -> Garbage:
        """As :func:`esper.urza.upkeep.collect_garbage` does."""
        return collect_garbage(self.trail, retired_days=retired_days, dry_run=dry_run)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _check(self, entry: KernelEntry) -> None:
        kernel_id = entry.metadata.kernel_id
        try:
            self._seals.check(entry.metadata, entry.blueprint_digest, entry.signature)
        except CorruptKernel as error:
            raise corrupt(kernel_id, error.message) from error

    def _write_blobs(self, connection: Connection, blobs: dict[str, bytes]) -> int:
        """Store what is not there, and mend what is there and damaged: sealed anew, equal bytes differ.

        How many were written.
        """
        written = 0
        for digest, data in blobs.items():
            stored = read_blob(connection, digest)
            if stored is not MISSING:
                try:
                    self._seals.open(digest, stored)
                    continue
                except CorruptKernel:
                    pass
            write_blob(connection, digest, *self._seals.close(digest, data))
            written += 1
        return written


def _said(text: str | None) -> str | None:
    """What an exception said, without the places and secrets that it may name."""
    return None if text is None else without_places(text)


def corrupt(kernel_id: str, reason: str) -> CorruptKernel:
    """The error for a kernel that must not be used."""
    return CorruptKernel(f"kernel {kernel_id!r} is corrupt: {reason}", hint=recompile(kernel_id))


def recompile(kernel_id: str) -> str:
    """What helps where a kernel's bytes do not."""
    return f"remove it with: esper kernels rm {kernel_id}, then compile its blueprint again"


def _insert(connection: Connection, entry: KernelEntry) -> None:
    metadata = entry.metadata
    values = kernel_values(metadata) | _tally(connection, metadata.kernel_id)
    values |= {"blueprint_digest": entry.blueprint_digest, "signature": entry.signature}
    connection.execute(insert(KernelRow).values(values))
    _insert_tags(connection, metadata, metadata.tags)


def _insert_tags(connection: Connection, metadata: KernelMetadata, tags: Collection[str]) -> None:
    if rows := tag_values(metadata, tags):
        connection.execute(insert(KernelTagRow), rows)


def _tally(connection: Connection, kernel_id: str) -> dict[str, int]:
    """The columns of ``kernels`` that count its trials."""
    kept = func.count().filter(TrialRow.verdict == "kept")
    statement = select(func.count(), kept).select_from(TrialRow).where(TrialRow.kernel_id == kernel_id)
    trials, good = connection.execute(statement).one()
    return {"trial_count": trials, "kept_count": good}
