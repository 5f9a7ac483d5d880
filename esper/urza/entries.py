"""Kernels as they are read from the record: rows with their tags, what they consist of, how they stand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ARRAY, ColumnElement, Connection, RowMapping, Select, String, any_, literal, select

from esper.errors import KernelNotFound
from esper.messages import KernelMetadata
from esper.security.audit import digest_of
from esper.urza.database import Database
from esper.urza.ranking import error_of
from esper.urza.rows import kernel_metadata
from esper.urza.schema import KernelRow, KernelTagRow

_COLUMNS: Final = tuple(KernelRow.__table__.columns.keys())

# The tags in no order: a sorter takes longer to set up than a few tags take to sort.
_WITH_TAGS: Final = (
    f"SELECT {', '.join(f'kernels.{column}' for column in _COLUMNS)}, kernel_tags.position, kernel_tags.tag "
    "FROM kernels LEFT JOIN kernel_tags ON kernel_tags.kernel_id = kernels.kernel_id "
    "WHERE kernels.kernel_id = ?"
)

_MOST_IDS: Final = 1000
"""How many ids a statement names; databases have a limit."""


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A kernel on record: its metadata, the SHA-256 of its blueprint's text, and the signature of both."""

    metadata: KernelMetadata
    blueprint_digest: str
    signature: str

    @property
    def digests(self) -> dict[str, str]:
        """What the kernel consists of: part to SHA-256."""
        return {
            "program": self.metadata.program_digest,
            "weights": self.metadata.weights_digest,
            "blueprint": self.blueprint_digest,
        }

    @property
    def digest(self) -> str:
        """SHA-256 of what the kernel consists of, for the audit trail."""
        return kernel_digest(self.metadata.kernel_id, *self.digests.values())


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a kernel in no context: its chance of being kept, how sure that is, and its trials."""

    score: float
    error: float
    kept: int
    trials: int


@dataclass(frozen=True, slots=True)
class Page:
    """Kernels in the order of a query, each with its standing.

    ``next`` is what ``KernelQuery.after`` takes to go on; ``None`` at the end.
    """

    kernels: tuple[KernelMetadata, ...]
    standings: tuple[Standing, ...]
    next: str | None


def kernel_digest(kernel_id: str, program: str, weights: str, blueprint: str) -> str:
    """SHA-256 of a kernel's id and of the digests of its parts."""
    return digest_of([kernel_id, program, weights, blueprint])


def entries(connection: Connection, statement: Select[Any]) -> list[KernelEntry]:
    """The kernels that ``statement``, a select of whole rows of ``kernels``, describes."""
    return with_tags(connection, connection.execute(statement).mappings().all())


def with_tags(connection: Connection, rows: Sequence[RowMapping]) -> list[KernelEntry]:
    """The kernels of ``rows``, whole rows of ``kernels``, in their order."""
    tags: dict[str, list[str]] = defaultdict(list)
    ids = [row["kernel_id"] for row in rows]
    pairs = select(KernelTagRow.kernel_id, KernelTagRow.tag).order_by(KernelTagRow.position)
    for start in range(0, len(ids), _MOST_IDS):
        chosen = _is_one_of(connection, ids[start : start + _MOST_IDS])
        for kernel_id, tag in connection.execute(pairs.where(chosen)):
            tags[kernel_id].append(tag)
    return [
        KernelEntry(kernel_metadata(row, tags[row["kernel_id"]]), row["blueprint_digest"], row["signature"])
        for row in rows
    ]


def standing_of(row: RowMapping) -> Standing:
    """The standing of the kernel in ``row``."""
    rank, trials = row["rank"], row["trial_count"]
    return Standing(rank, error_of(rank, 1 + trials), row["kept_count"], trials)


def _is_one_of(connection: Connection, ids: Sequence[str]) -> ColumnElement[bool]:
    """That a row of ``kernel_tags`` is of one of the kernels ``ids``."""
    column: ColumnElement[str] = KernelTagRow.__table__.c.kernel_id
    if connection.dialect.name == "postgresql":
        # One value for all: psycopg takes milliseconds to read a statement with a mark for each.
        return column == any_(literal(list(ids), ARRAY(String)))
    return column.in_(ids)


def find_entry(connection: Connection, kernel_id: str) -> KernelEntry | None:
    """The kernel of that id, if any."""
    found = entries(connection, select(KernelRow.__table__).where(KernelRow.kernel_id == kernel_id))
    return found[0] if found else None


def entry_by_id(database: Database, kernel_id: str) -> KernelEntry:
    """As :func:`entry_of`, outside of a transaction and in a quarter of the time."""
    rows = database.rows(_WITH_TAGS, [kernel_id])
    if not rows:
        raise KernelNotFound(kernel_id)
    row = dict(zip(_COLUMNS, rows[0], strict=False))
    tags = [tag for _, tag in sorted(row[-2:] for row in rows) if tag is not None]
    return KernelEntry(kernel_metadata(row, tags), row["blueprint_digest"], row["signature"])


def entry_of(connection: Connection, kernel_id: str) -> KernelEntry:
    """The kernel of that id, or ``KernelNotFound``."""
    entry = find_entry(connection, kernel_id)
    if entry is None:
        raise KernelNotFound(kernel_id)
    return entry
