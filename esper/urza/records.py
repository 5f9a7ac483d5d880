"""The record of kernels, of the attempts to compile them, and of their trials in runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, func, insert, or_, select, update

from esper.errors import CorruptKernel, KernelNotFound, LibraryError
from esper.messages import CompilationRecord, KernelArtefact, KernelMetadata, Slot
from esper.urza.database import Database
from esper.urza.query import KernelQuery, Status, fitting, matching
from esper.urza.rows import (
    Trial,
    compilation_record,
    compilation_values,
    kernel_metadata,
    kernel_values,
    trial_of,
    trial_values,
)
from esper.urza.schema import BlobRow, CompilationRow, KernelRow, KernelTagRow, TrialRow
from esper.urza.sql import read_blob, write_blob
from esper.urza.tiers import Missing, digest_of


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A kernel on record: its metadata, and the SHA-256 of its blueprint's text."""

    metadata: KernelMetadata
    blueprint_digest: str

    @property
    def digests(self) -> dict[str, str]:
        """What the kernel consists of: part to SHA-256."""
        return {
            "program": self.metadata.program_digest,
            "weights": self.metadata.weights_digest,
            "blueprint": self.blueprint_digest,
        }


class KernelRecords:
    """The tables of the library behind plain records. Threads may share it, processes share the database.

    Every method may raise ``LibraryError`` (the database is locked or damaged) or ``StorageError`` (disk
    full, read-only, I/O error), after which nothing of what it was doing is stored.
    """

    def __init__(self, database: Database) -> None:
        """Over an open ``database``, which this then owns."""
        self._database = database

    def put(self, artefact: KernelArtefact) -> KernelMetadata:
        """Store a kernel, its blobs and its tags, all or nothing, and return it as it is on record.

        A kernel whose id is on record stays as it is; a damaged copy of a part it shares is mended.

        Raises:
            CorruptKernel: the artefact's bytes are not those that its metadata names.
            LibraryError: its metadata holds what the record cannot.
        """
        blobs = _checked_blobs(artefact)
        metadata = replace(
            artefact.metadata,
            program_bytes=len(artefact.program),
            weights_bytes=len(artefact.weights),
            tags=tuple(dict.fromkeys(artefact.metadata.tags)),
            created_at=artefact.metadata.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._database.writing() as connection:
            entry = _find_entry(connection, metadata.kernel_id)
            if entry is None:
                _write_blobs(connection, blobs)
                _insert(connection, metadata, digest_of(artefact.blueprint.encode()))
                return metadata
            parts = set(entry.digests.values())
            _write_blobs(connection, {digest: data for digest, data in blobs.items() if digest in parts})
            return entry.metadata

    def entry(self, kernel_id: str) -> KernelEntry:
        """The kernel of that id, or ``KernelNotFound``."""
        with self._database.reading() as connection:
            return _entry(connection, kernel_id)

    def contains(self, kernel_id: str) -> bool:
        """Whether a kernel of that id is on record."""
        with self._database.reading() as connection:
            return connection.scalar(select(exists().where(KernelRow.kernel_id == kernel_id))) is True

    def blob(self, digest: str) -> bytes | Missing:
        """The bytes on record under ``digest``, unchecked, or ``MISSING``."""
        with self._database.reading() as connection:
            return read_blob(connection, digest)

    def find(self, slot: Slot, tags: Collection[str] = (), limit: int = 20) -> list[KernelMetadata]:
        """The ``limit`` best validated kernels that fit ``slot`` and have any of ``tags``, best first.

        Best is the greatest ``(kept trials + performance_score) / (trials + 1)``, then the least
        ``latency_ratio``.
        """
        return self._select(fitting(slot, tags, limit))

    def query(self, query: KernelQuery) -> list[KernelMetadata]:
        """The kernels that ``query`` describes, in its order; ``ConfigError`` for a sort that is none."""
        return self._select(matching(query))

    def set_status(self, kernel_id: str, status: Status) -> None:
        """Retire a kernel, so that no slot is offered it, or bring it back; or ``KernelNotFound``."""
        with self._database.writing() as connection:
            statement = update(KernelRow).where(KernelRow.kernel_id == kernel_id).values(status=status)
            if connection.execute(statement).rowcount == 0:
                raise KernelNotFound(kernel_id)

    def remove(self, kernel_id: str) -> list[str]:
        """Remove a kernel and what no other kernel refers to; the digests of the blobs that went.

        Its trials stay: the id comes from the content, so they hold for the same kernel compiled again.

        Raises:
            KernelNotFound: no kernel of that id is on record.
        """
        with self._database.writing() as connection:
            parts = set(_entry(connection, kernel_id).digests.values())
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
        with self._database.writing() as connection:
            changed = {report.kernel_id, *connection.scalars(replaced.returning(TrialRow.kernel_id))}
            connection.execute(insert(TrialRow).values(trial_values(trial)))
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

    def record_compilation(self, record: CompilationRecord) -> None:
        """Add one attempt to the log of compilations."""
        with self._database.writing() as connection:
            connection.execute(insert(CompilationRow).values(compilation_values(record)))

    def compilations(self) -> list[CompilationRecord]:
        """The log of attempts to compile, oldest first."""
        statement = select(CompilationRow.__table__).order_by(CompilationRow.id)
        with self._database.reading() as connection:
            return [compilation_record(row) for row in connection.execute(statement).mappings()]

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _select(self, statement: Select[Any]) -> list[KernelMetadata]:
        with self._database.reading() as connection:
            return [entry.metadata for entry in _entries(connection, statement)]


def _entries(connection: Connection, statement: Select[Any]) -> list[KernelEntry]:
    """The kernels that ``statement``, a select of whole rows of ``kernels``, describes."""
    rows = connection.execute(statement).mappings().all()
    chosen = statement.with_only_columns(KernelRow.kernel_id)
    tags: dict[str, list[str]] = defaultdict(list)
    pairs = select(KernelTagRow.kernel_id, KernelTagRow.tag).where(KernelTagRow.kernel_id.in_(chosen))
    for kernel_id, tag in connection.execute(pairs.order_by(KernelTagRow.position)):
        tags[kernel_id].append(tag)
    return [
        KernelEntry(kernel_metadata(row, tags[row["kernel_id"]]), row["blueprint_digest"]) for row in rows
    ]


def _find_entry(connection: Connection, kernel_id: str) -> KernelEntry | None:
    found = _entries(connection, select(KernelRow.__table__).where(KernelRow.kernel_id == kernel_id))
    return found[0] if found else None


def _entry(connection: Connection, kernel_id: str) -> KernelEntry:
    entry = _find_entry(connection, kernel_id)
    if entry is None:
        raise KernelNotFound(kernel_id)
    return entry


def _insert(connection: Connection, metadata: KernelMetadata, blueprint_digest: str) -> None:
    tally = _tally(connection, metadata.kernel_id)
    values = kernel_values(metadata) | {"blueprint_digest": blueprint_digest} | tally
    connection.execute(insert(KernelRow).values(values))
    tags = [
        {"kernel_id": metadata.kernel_id, "tag": tag, "position": position}
        for position, tag in enumerate(metadata.tags)
    ]
    if tags:
        connection.execute(insert(KernelTagRow), tags)


def _write_blobs(connection: Connection, blobs: dict[str, bytes]) -> None:
    for digest, data in blobs.items():
        write_blob(connection, digest, data)


def _tally(connection: Connection, kernel_id: str) -> dict[str, int]:
    """The columns of ``kernels`` that count its trials."""
    kept = func.count().filter(TrialRow.verdict == "kept")
    statement = select(func.count(), kept).select_from(TrialRow).where(TrialRow.kernel_id == kernel_id)
    trials, good = connection.execute(statement).one()
    return {"trial_count": trials, "kept_count": good}


def _checked_blobs(artefact: KernelArtefact) -> dict[str, bytes]:
    """The artefact's blobs by digest, once its bytes and metadata are seen to be fit for the record."""
    metadata = artefact.metadata
    kernel = f"kernel {metadata.kernel_id!r} was not stored"
    for name in ("compilation_time", "performance_score", "latency_ms", "latency_ratio"):
        if not math.isfinite(getattr(metadata, name)):
            raise LibraryError(f"{kernel}: its {name} is {getattr(metadata, name)}")
    if len(metadata.input_shape) != 1 or len(metadata.output_shape) != 1:
        shapes = f"{metadata.input_shape} -> {metadata.output_shape}"
        raise LibraryError(f"{kernel}: its shapes {shapes} are not one feature count each")
    blueprint = artefact.blueprint.encode()
    named = {"program": metadata.program_digest, "weights": metadata.weights_digest}
    for part, digest in named.items():
        if digest_of(getattr(artefact, part)) != digest:
            raise CorruptKernel(f"{kernel}: the digest of its {part} does not match")
    return {
        metadata.program_digest: artefact.program,
        metadata.weights_digest: artefact.weights,
        digest_of(blueprint): blueprint,
    }
