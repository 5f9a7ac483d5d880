"""The record of kernels, of the attempts to compile them, and of their trials in runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, selectinload

from esper.errors import ConfigError, CorruptKernel, KernelNotFound, LibraryError
from esper.messages import CompilationRecord, KernelArtefact, KernelMetadata, Layout, Slot
from esper.urza.database import Database
from esper.urza.rows import (
    Trial,
    compilation_record,
    compilation_row,
    kernel_metadata,
    kernel_row,
    trial_of,
    trial_row,
)
from esper.urza.schema import BlobRow, CompilationRow, KernelRow, KernelTagRow, TrialRow
from esper.urza.sql import read_blob, write_blob
from esper.urza.tiers import Missing, digest_of

Status = Literal["validated", "retired"]
"""Only validated kernels are found for a slot; a retired one stays in the library for those who name it."""

SORT_KEYS: Final[dict[str, ColumnElement[Any]]] = {
    "rank": KernelRow.rank.desc(),
    "name": func.lower(KernelRow.name),
    "created": KernelRow.created_at.desc(),
    "score": KernelRow.performance_score.desc(),
    "latency": KernelRow.latency_ratio.asc(),
    "parameters": KernelRow.parameters.asc(),
    "size": (KernelRow.program_bytes + KernelRow.weights_bytes).asc(),
    "trials": KernelRow.trial_count.desc(),
}
"""What ``KernelQuery.sort`` takes. Each sorts the way one reads it: best, newest, fastest, smallest first."""


@dataclass(frozen=True, slots=True)
class KernelQuery:
    """Which kernels to list; a field left alone does not narrow. A kernel has all of ``tags``.

    ``input`` and ``output`` are features (channels), ``name`` is any part of the name in any case, ``sort``
    one of ``SORT_KEYS``, ``limit`` the most to return.
    """

    tags: tuple[str, ...] = ()
    input: int | None = None
    output: int | None = None
    layout: Layout | None = None
    status: Status | None = None
    name: str | None = None
    sort: str = "rank"
    limit: int | None = None


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
            created_at=artefact.metadata.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._database.writing() as session:
            row = session.get(KernelRow, metadata.kernel_id)
            if row is None:
                _write_blobs(session, blobs)
                tally = _tally(session, metadata.kernel_id)
                row = kernel_row(metadata, digest_of(artefact.blueprint.encode()), *tally)
                session.add(row)
                session.flush()
            else:
                parts = set(_entry(row).digests.values())
                _write_blobs(session, {digest: data for digest, data in blobs.items() if digest in parts})
            return kernel_metadata(row)

    def entry(self, kernel_id: str) -> KernelEntry:
        """The kernel of that id, or ``KernelNotFound``."""
        with self._database.reading() as session:
            return _entry(_row(session, kernel_id))

    def contains(self, kernel_id: str) -> bool:
        """Whether a kernel of that id is on record."""
        with self._database.reading() as session:
            return session.scalar(select(exists().where(KernelRow.kernel_id == kernel_id))) is True

    def blob(self, digest: str) -> bytes | Missing:
        """The bytes on record under ``digest``, unchecked, or ``MISSING``."""
        with self._database.reading() as session:
            return read_blob(session, digest)

    def find(self, slot: Slot, tags: Collection[str] = (), limit: int = 20) -> list[KernelMetadata]:
        """The ``limit`` best validated kernels that fit ``slot`` and have any of ``tags``, best first.

        Best is the greatest ``(kept trials + performance_score) / (trials + 1)``, then the least
        ``latency_ratio``.
        """
        conditions = [
            KernelRow.in_features == slot.in_features,
            KernelRow.out_features == slot.out_features,
            KernelRow.stride == slot.stride,
            KernelRow.layout.in_([layout for layout in get_args(Layout) if slot.accepts(layout)]),
            KernelRow.status == "validated",
        ]
        if tags:
            conditions.append(_tagged(KernelTagRow.tag.in_(sorted(tags))))
        return self._select(conditions, "rank", limit)

    def query(self, query: KernelQuery) -> list[KernelMetadata]:
        """The kernels that ``query`` describes, in its order; ``ConfigError`` for a sort that is none."""
        if query.sort not in SORT_KEYS:
            near = difflib.get_close_matches(query.sort, SORT_KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(SORT_KEYS)}"
            raise ConfigError(f"kernels cannot be sorted by {query.sort!r}", hint=hint)
        conditions = [_tagged(KernelTagRow.tag == tag) for tag in query.tags]
        columns = {
            KernelRow.in_features: query.input,
            KernelRow.out_features: query.output,
            KernelRow.layout: query.layout,
            KernelRow.status: query.status,
        }
        conditions += [column == value for column, value in columns.items() if value is not None]
        if query.name is not None:
            conditions.append(KernelRow.name.icontains(query.name, autoescape=True))
        return self._select(conditions, query.sort, query.limit)

    def set_status(self, kernel_id: str, status: Status) -> None:
        """Retire a kernel, so that no slot is offered it, or bring it back; or ``KernelNotFound``."""
        with self._database.writing() as session:
            _row(session, kernel_id).status = status

    def remove(self, kernel_id: str) -> list[str]:
        """Remove a kernel and what no other kernel refers to; the digests of the blobs that went.

        Its trials stay: the id comes from the content, so they hold for the same kernel compiled again.

        Raises:
            KernelNotFound: no kernel of that id is on record.
        """
        with self._database.writing() as session:
            row = _row(session, kernel_id)
            parts = set(_entry(row).digests.values())
            session.delete(row)
            session.flush()
            columns = (KernelRow.program_digest, KernelRow.weights_digest, KernelRow.blueprint_digest)
            in_use = exists().where(or_(*[column == BlobRow.digest for column in columns]))
            unused = delete(BlobRow).where(BlobRow.digest.in_(parts), ~in_use).returning(BlobRow.digest)
            return list(session.scalars(unused))

    def record_trial(self, trial: Trial) -> None:
        """Store the result of a trial; it counts in the rank of its kernel from now on.

        A seed has one trial at a time, so one that started at the same place and epoch of the same run, as
        after a resumption, replaces the earlier result.
        """
        report = trial.report
        with self._database.writing() as session:
            replaced = (
                delete(TrialRow)
                .where(
                    TrialRow.run_id == trial.run_id,
                    TrialRow.layer == report.layer,
                    TrialRow.seed_idx == report.seed_idx,
                    TrialRow.started_epoch == report.started_epoch,
                )
                .returning(TrialRow.kernel_id)
            )
            changed = {report.kernel_id, *session.scalars(replaced)}
            session.add(trial_row(trial))
            session.flush()
            for kernel_id in changed:
                trials, kept = _tally(session, kernel_id)
                session.execute(
                    update(KernelRow)
                    .where(KernelRow.kernel_id == kernel_id)
                    .values(trial_count=trials, kept_count=kept)
                )

    def trials(self, kernel_id: str | None = None) -> list[Trial]:
        """The trials of a kernel, or of all, oldest first; those of a removed kernel are still there."""
        statement = select(TrialRow).order_by(TrialRow.id)
        if kernel_id is not None:
            statement = statement.where(TrialRow.kernel_id == kernel_id)
        with self._database.reading() as session:
            return [trial_of(row) for row in session.scalars(statement)]

    def record_compilation(self, record: CompilationRecord) -> None:
        """Add one attempt to the log of compilations."""
        with self._database.writing() as session:
            session.add(compilation_row(record))

    def compilations(self) -> list[CompilationRecord]:
        """The log of attempts to compile, oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(CompilationRow).order_by(CompilationRow.id))
            return [compilation_record(row) for row in rows]

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _select(
        self, conditions: list[ColumnElement[bool]], sort: str, limit: int | None
    ) -> list[KernelMetadata]:
        # Equal ranks are common, so the faster comes first; the id makes any order repeatable.
        order = (SORT_KEYS[sort], KernelRow.latency_ratio, KernelRow.kernel_id)
        statement = select(KernelRow).where(and_(True, *conditions)).order_by(*order).limit(limit)
        with self._database.reading() as session:
            rows = session.scalars(statement.options(selectinload(KernelRow.tags)))
            return [kernel_metadata(row) for row in rows]


def _tagged(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(KernelTagRow.kernel_id == KernelRow.kernel_id, condition)


def _row(session: Session, kernel_id: str) -> KernelRow:
    row = session.get(KernelRow, kernel_id)
    if row is None:
        raise KernelNotFound(kernel_id)
    return row


def _entry(row: KernelRow) -> KernelEntry:
    return KernelEntry(kernel_metadata(row), row.blueprint_digest)


def _tally(session: Session, kernel_id: str) -> tuple[int, int]:
    kept = func.count().filter(TrialRow.verdict == "kept")
    statement = select(func.count(), kept).select_from(TrialRow).where(TrialRow.kernel_id == kernel_id)
    trials, good = session.execute(statement).one()
    return trials, good


def _write_blobs(session: Session, blobs: dict[str, bytes]) -> None:
    for digest, data in blobs.items():
        write_blob(session, digest, data)


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
            raise CorruptKernel(f"{kernel}: its {part} does not match its digest")
    return {
        metadata.program_digest: artefact.program,
        metadata.weights_digest: artefact.weights,
        digest_of(blueprint): blueprint,
    }
