"""The farthest tier: bytes in the library's database, where they are the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from esper.urza.database import Database
from esper.urza.schema import BlobRow
from esper.urza.tiers import MISSING, Missing


class SqlTier:
    """The ``blobs`` table as a tier. Threads may share it, and any number of processes one database."""

    def __init__(self, database: Database, *, name: str = "sql") -> None:
        """Over an open ``database``, which whoever opened it closes."""
        self._database = database
        self._name = name

    @property
    def name(self) -> str:
        """The name that its hits and misses are counted under."""
        return self._name

    def get(self, key: str) -> bytes | Missing:
        """The value under ``key``, or ``MISSING``."""
        return self.get_many([key]).get(key, MISSING)

    def put(self, key: str, value: bytes) -> None:
        """Store ``value`` under ``key``, in place of any other."""
        self._database.put_blob(key, value)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those of ``keys`` that are on record, by one statement."""
        if not keys:
            return {}
        marks = ", ".join("?" * len(keys))
        statement = f"SELECT digest, data FROM blobs WHERE digest IN ({marks})"
        return dict(self._database.rows(statement, keys))

    def put_many(self, items: Mapping[str, bytes]) -> None:
        """Store all of ``items`` or nothing; in the order of the keys, so that two calls cannot deadlock."""
        with self._database.writing() as connection:
            for key in sorted(items):
                write_blob(connection, key, items[key])

    def delete(self, key: str) -> None:
        """Remove ``key``; refused with a ``LibraryError`` while a kernel refers to it."""
        with self._database.writing() as connection:
            connection.execute(delete(BlobRow).where(BlobRow.digest == key))


def read_blob(connection: Connection, digest: str) -> bytes | Missing:
    """The bytes under ``digest`` as they are stored, unchecked, or ``MISSING``."""
    data = connection.scalar(select(BlobRow.data).where(BlobRow.digest == digest))
    return MISSING if data is None else data


def write_blob(connection: Connection, digest: str, data: bytes, key_id: str = "") -> None:
    """Store ``data``, sealed with ``key_id``, under ``digest`` as a part of the connection's transaction.

    Equal bytes are left as they are, so a second put writes nothing; other ones are replaced.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(BlobRow).values(digest=digest, data=data, key_id=key_id)
    new = statement.excluded.data
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[BlobRow.digest],
            set_={"data": new, "key_id": statement.excluded.key_id},
            where=BlobRow.data != new,
        )
    )
