"""Taking out of a library what nobody needs any more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, delete, exists, func, or_, select

from esper.security.audit import digest_of
from esper.urza.entries import kernel_digest
from esper.urza.schema import BlobRow, KernelRow
from esper.urza.trail import Change, LibraryTrail


@dataclass(frozen=True, slots=True)
class Garbage:
    """The ids of kernels, and the digests of blobs with the bytes that these take, that nobody needs."""

    kernels: tuple[str, ...]
    blobs: tuple[str, ...]
    bytes: int


class _Undo(Exception):
    pass


def collect_garbage(trail: LibraryTrail, *, retired_days: float | None, dry_run: bool) -> Garbage:
    """Take out blobs that no kernel refers to and, if ``retired_days`` is given, old retired kernels.

    Old is a retired kernel that was made more than so many days ago and was kept in no trial. With
    ``dry_run`` nothing changes, and what would go is found by doing it in a transaction that is undone.
    """
    found: list[Garbage] = []
    try:
        with trail.changing() as change:
            kernels = () if retired_days is None else _retired(change, retired_days)
            blobs, size = _unused(change.connection)
            found.append(Garbage(kernels, blobs, size))
            if blobs:
                change.note("blobs.removed", f"{len(blobs)} that no kernel refers to", digest_of(list(blobs)))
            if dry_run:
                raise _Undo
    except _Undo:
        pass
    return found[0]


def _retired(change: Change, days: float) -> tuple[str, ...]:
    before = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    old = delete(KernelRow).where(
        KernelRow.status == "retired", KernelRow.created_at < before, KernelRow.kept_count == 0
    )
    parts = (KernelRow.program_digest, KernelRow.weights_digest, KernelRow.blueprint_digest)
    gone = sorted(change.connection.execute(old.returning(KernelRow.kernel_id, *parts)).all())
    for kernel_id, *digests in gone:
        change.note("kernel.removed", kernel_id, before=kernel_digest(kernel_id, *digests), reason="garbage")
    return tuple(kernel_id for kernel_id, *_ in gone)


def _unused(connection: Connection) -> tuple[tuple[str, ...], int]:
    columns = (KernelRow.program_digest, KernelRow.weights_digest, KernelRow.blueprint_digest)
    in_use = exists().where(or_(*[column == BlobRow.digest for column in columns]))
    unused = select(BlobRow.digest, func.length(BlobRow.data)).where(~in_use).order_by(BlobRow.digest)
    rows = connection.execute(unused).all()
    connection.execute(delete(BlobRow).where(~in_use))
    return tuple(digest for digest, _ in rows), sum(size for _, size in rows)
