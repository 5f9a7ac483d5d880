"""Sealing a library that was not, and moving a sealed one to another key, a batch a transaction.

Each step leaves a library that is whole, so either may be stopped at any point and begun again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, bindparam, exists, func, select, update

from esper.errors import CorruptKernel, LibraryError, SealBroken
from esper.urza.database import Database
from esper.urza.entries import KernelEntry, entries
from esper.urza.schema import BlobRow, KernelRow
from esper.urza.seals import Seals
from esper.urza.tiers import digest_of
from esper.urza.trail import LibraryTrail

Progress = Callable[[int, int], None]
"""Told how many blobs and records are done, and how many there are to do."""


def quiet(_done: int, _total: int) -> None:
    """Tell nobody."""


_BLOBS: Final = 50
_KERNELS: Final = 500


class Sealing:
    """What concerns the seals of a whole library; ``seals`` must be ones that seal."""

    def __init__(self, database: Database, seals: Seals, trail: LibraryTrail | None = None) -> None:
        self._database = database
        self._trail = trail or LibraryTrail(database, None)
        self._seals = seals

    def on_opening(self, adopting: Callable[[], bool]) -> None:
        """Seal what an older version left unsealed, if ``adopting`` says so; else refuse it.

        ``adopting`` is asked once the keys are at hand: it is for a caller who knows that they were made just
        now, so that no library sealed with them can have been. Blobs that an adoption was stopped before are
        sealed in any case: their digests are in records that are signed.

        Raises:
            LibraryError: there are kernels that nobody signed, which whoever can write there may have made.
        """
        with self._database.reading() as connection:
            unsigned = connection.scalar(select(exists().where(KernelRow.signature == "")))
            plain = connection.scalar(select(exists().where(BlobRow.key_id == "")))
        if unsigned:
            assert self._seals.key_id  # which reads the keys, or makes them
            if not adopting():
                raise LibraryError(
                    f"the kernel library {self._database.where} has kernels that are not sealed",
                    hint="if nobody else could write there, seal them with: esper keys adopt",
                )
            self.adopt()
        elif plain:
            self._seal_blobs()

    def adopt(self, progress: Progress = quiet) -> int:
        """Sign every kernel that is not, and seal its bytes; how many kernels there were.

        A blob that does not match its digest is left as it is, and refused whenever it is asked for.
        """
        with self._trail.changing() as change:  # all or none: nobody can add one in between
            found = self._sign(change.connection, KernelRow.signature == "", check=False)
            if found:
                change.note("library.adopted", f"{found} kernels that were not sealed")
        self._seal_blobs(progress)
        return found

    def reseal(self, progress: Progress) -> int:
        """Wrap and sign everything with the key that seals now; how many blobs and records were not.

        Raises UnknownKey where an older key is gone. What is damaged stays under its key.
        """
        key_id = self._seals.key_id
        other_blobs, other_records = BlobRow.key_id != key_id, ~KernelRow.signature.startswith(f"{key_id}:")
        with self._database.reading() as connection:
            total = _count(connection, other_blobs) + _count(connection, other_records)
        done = changed = 0
        for batch in self._batches(other_blobs):
            with self._database.writing() as connection:
                changed += self._rewrap(connection, batch)
            done += len(batch)
            progress(done, total)
        after = ""
        while True:
            with self._database.writing() as connection:
                ids = _next(connection, KernelRow.kernel_id, after, other_records, _KERNELS)
                changed += self._sign(connection, KernelRow.kernel_id.in_(ids), check=True)
            if not ids:
                self._trail.resign()
                return changed
            after = ids[-1]
            done += len(ids)
            progress(done, total)

    def sealed_by(self) -> dict[str, int]:
        """How many blobs and records each key is needed for; under ``""`` those that are not sealed."""
        by_key: Counter[str] = Counter()
        signer = func.substr(KernelRow.signature, 1, 16)
        with self._database.reading() as connection:
            for column in (BlobRow.key_id, signer):
                for key_id, count in connection.execute(select(column, func.count()).group_by(column)):
                    by_key[key_id] += count
        return dict(by_key)

    def _seal_blobs(self, progress: Progress = quiet) -> None:
        with self._database.reading() as connection:
            total = _count(connection, BlobRow.key_id == "")
        done = 0
        for batch in self._batches(BlobRow.key_id == ""):
            with self._database.writing() as connection:
                for digest, data in _read(connection, batch):
                    if digest_of(data) == digest:
                        _replace(connection, digest, *self._seals.close(digest, data))
            done += len(batch)
            progress(done, total)

    def _batches(self, condition: ColumnElement[bool]) -> Iterator[Sequence[str]]:
        after = ""
        while True:
            with self._database.reading("statement") as connection:
                digests = _next(connection, BlobRow.digest, after, condition, _BLOBS)
            if not digests:
                return
            yield digests
            after = digests[-1]

    def _rewrap(self, connection: Connection, digests: Sequence[str]) -> int:
        changed = 0
        for digest, stored in _read(connection, digests):
            try:
                sealed, key_id = self._seals.rewrap(digest, stored)
            except SealBroken:
                continue
            _replace(connection, digest, sealed, key_id)
            changed += 1
        return changed

    def _sign(self, connection: Connection, which: ColumnElement[bool], *, check: bool) -> int:
        """Sign the kernels anew, those whose signature is good if ``check``; how many."""
        signed = [
            {
                "id": entry.metadata.kernel_id,
                "new": self._seals.sign(entry.metadata, entry.blueprint_digest),
            }
            for entry in entries(connection, select(KernelRow.__table__).where(which))
            if not check or self._good(entry)
        ]
        if signed:
            statement = update(KernelRow.__table__).where(KernelRow.kernel_id == bindparam("id"))  # type: ignore[arg-type]
            connection.execute(statement.values(signature=bindparam("new")), signed)
        return len(signed)

    def _good(self, entry: KernelEntry) -> bool:
        try:
            self._seals.check(entry.metadata, entry.blueprint_digest, entry.signature)
        except CorruptKernel:
            return False
        return True


def _count(connection: Connection, condition: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).where(condition)) or 0


def _next(
    connection: Connection, key: Any, after: str, condition: ColumnElement[bool], limit: int
) -> Sequence[str]:
    statement = select(key).where(key > after, condition).order_by(key).limit(limit)
    return connection.scalars(statement).all()


def _read(connection: Connection, digests: Sequence[str]) -> Sequence[tuple[str, bytes]]:
    # Again, under the lock: what was removed since the batch was made is not there.
    statement = select(BlobRow.digest, BlobRow.data).where(BlobRow.digest.in_(digests))
    return [(row.digest, row.data) for row in connection.execute(statement)]


def _replace(connection: Connection, digest: str, data: bytes, key_id: str) -> None:
    statement = update(BlobRow).where(BlobRow.digest == digest)
    connection.execute(statement.values(data=data, key_id=key_id))
