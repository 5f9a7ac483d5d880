"""The audit trail of a library: an entry for each change, in the transaction of the change."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, cast

from sqlalchemy import Connection, CursorResult, Table, func, select, update

from esper.errors import AuditError, EsperError
from esper.security.audit import Action, Entry, Head, Signer, actor, digest_of, first_link, new_entry
from esper.security.audit_check import Finding, Unfinished, check_trail
from esper.security.audit_heads import KeptHeads
from esper.urza.database import Database
from esper.urza.schema import AuditRow

_ENTRY: Final = tuple(field.name for field in fields(Entry))
_HEAD: Final = tuple(field.name for field in fields(Head))
_ENTRIES: Final = cast(Table, AuditRow.__table__)
# Run by the driver alone: what SQLAlchemy takes for a statement would be felt in each change.
_READ_HEAD: Final = f"SELECT {', '.join(_HEAD)} FROM audit_head"
_INSERT_HEAD: Final = f"INSERT INTO audit_head ({', '.join(_HEAD)}, id) VALUES ({'?, ' * len(_HEAD)}1)"
_UPDATE_HEAD: Final = f"UPDATE audit_head SET {', '.join(f'{name} = ?' for name in _HEAD)}"
_INSERT_ENTRY: Final = f"INSERT INTO audit ({', '.join(_ENTRY)}) VALUES ({', '.join('?' * len(_ENTRY))})"
_VALUES: Final = attrgetter(*_ENTRY)
_HEAD_VALUES: Final = attrgetter(*_HEAD)
_BATCH: Final = 1000
_BEFORE_ALL: Final = -(2**31)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Auditor:
    """What a trail is written with: keys, who acts unless ``acting`` says otherwise, and heads apart."""

    signer: Signer
    who: Callable[[], str]
    heads: KeptHeads


class Change:
    """A transaction, and what is to be entered of it when it ends."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.actions: list[Action] = []

    def note(self, what: str, subject: str, before: str = "", after: str = "", **detail: Any) -> None:
        """Enter that ``what`` was done to ``subject``; see :class:`esper.security.audit.Action`."""
        self.actions.append(Action(what, subject, before, after, detail))


@dataclass(frozen=True, slots=True)
class TrailQuery:
    """Which entries to list, the newest first; a field left alone does not narrow. Times are ISO 8601."""

    action: str | None = None
    subject: str | None = None
    who: str | None = None
    since: str | None = None
    until: str | None = None
    before: int | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of a trail found: its name, where it begins, how many entries, and what is wrong."""

    place: str
    trail: str | None
    began: str | None
    entries: int
    findings: tuple[Finding, ...]
    unfinished: tuple[Unfinished, ...] = ()


class LibraryTrail:
    """The trail of a library; without an ``auditor``, as in memory, nothing is entered.

    Threads and processes may share the database: there is one writer at a time, so the chain is linear.
    """

    def __init__(self, database: Database, auditor: Auditor | None) -> None:
        self._database = database
        self._auditor = auditor
        self._told = False
        # Of two folders, each may have a library of the same name.
        self._place = database.where if "://" in database.where else str(Path(database.where).absolute())

    @property
    def kept(self) -> bool:
        """Whether changes are entered at all."""
        return self._auditor is not None

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """A transaction of the library, stored with its entries or not at all."""
        entered: tuple[Head | None, Head] | None = None
        with self._database.writing() as connection:
            change = Change(connection)
            yield change
            if change.actions and self._auditor is not None:
                entered = _append(connection, self._auditor, change.actions)
        if entered is not None and self._auditor is not None:
            self._keep(self._auditor.heads, *entered)

    def note(self, action: Action) -> None:
        """Enter what is no change of the library itself, in a transaction of its own."""
        with self.changing() as change:
            change.actions.append(action)

    def entries(self, query: TrailQuery) -> list[Entry]:
        """The entries that ``query`` describes, the newest first."""
        starts = {"action": query.action, "subject": query.subject, "who": query.who}
        statement = select(_ENTRIES).order_by(_ENTRIES.c.sequence.desc()).limit(query.limit)
        for name, value in starts.items():
            if value is not None:
                statement = statement.where(_ENTRIES.c[name].startswith(value, autoescape=True))
        if query.since is not None:
            statement = statement.where(_ENTRIES.c.at >= query.since)
        if query.until is not None:
            statement = statement.where(_ENTRIES.c.at < query.until)
        if query.before is not None:
            statement = statement.where(_ENTRIES.c.sequence < query.before)
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def head(self) -> Head | None:
        """The newest entry as the head says, None where the trail has not begun; unauthenticated."""
        with self._database.reading() as connection:
            return _read_head(connection)

    def in_order(self) -> Iterator[Entry]:
        """Every entry, the first one first, from one state of the database."""
        with self._database.reading() as connection:
            yield from _in_order(connection)

    def verify(self) -> Verdict:
        """Check every entry against the head of the library and what this machine has seen of it."""
        assert self._auditor is not None
        # Before the entries, so that it is never newer than they are.
        kept = self._auditor.heads.read(self._place)
        with self._database.reading() as connection:
            head = _read_head(connection)
            heads = [("the library's head", head)] if head else []
            if kept:
                heads.append((f"the head kept in {self._auditor.heads.path(self._place)}", kept))
            count, began = connection.execute(select(func.count(), func.min(_ENTRIES.c.at))).one()
            trail = head.trail if head else kept.trail if kept else None
            found = list(check_trail(self._auditor.signer, trail or "", _in_order(connection), heads))
        if count and head is None:
            found.append(Finding("head", count, f"the library has no head, and {count} entries"))
        return Verdict(self._database.where, trail, began, count, tuple(found))

    def signed_by(self) -> dict[str, int]:
        """How many entries each key is needed for, by its id."""
        counted = select(_ENTRIES.c.key_id, func.count()).group_by(_ENTRIES.c.key_id)
        with self._database.reading() as connection:
            found = {str(key_id): int(number) for key_id, number in connection.execute(counted)}
            head = _read_head(connection)
        return found if head is None else {head.key_id: 0, **found}

    def resign(self) -> int:
        """Sign anew, with the key that signs now, what is good under an older one; how many entries."""
        if self._auditor is None:
            return 0
        head = self.head()
        if head is not None and head.key_id != self._auditor.signer.key_id:
            self.note(Action("trail.signed_anew", self._auditor.signer.key_id))
        changed, after = 0, _BEFORE_ALL
        while True:
            with self._database.writing() as connection:
                done, last = _resign(connection, self._auditor.signer, after)
                pair = None if last is not None else _resign_head(connection, self._auditor.signer)
            changed += done
            if last is None:
                if pair is not None:
                    self._auditor.heads.resign(self._place, *pair)
                return changed
            after = last

    def _keep(self, heads: KeptHeads, before: Head | None, head: Head) -> None:
        """What was changed is on record already, so it is not failed for this."""

        def link_at(number: int) -> str | None:
            if before is not None and number == before.sequence:
                return before.link
            with self._database.reading("statement") as connection:
                return connection.scalar(select(_ENTRIES.c.link).where(_ENTRIES.c.sequence == number))

        try:
            heads.keep(self._place, head, link_at)
        except EsperError as error:
            if not self._told:
                log.warning("%s", error)
            self._told = True


def matches(entry: Entry, query: TrailQuery) -> bool:
    """Whether ``query`` describes ``entry``, of a trail that is no database's."""
    starts = ((entry.action, query.action), (entry.subject, query.subject), (entry.who, query.who))
    return (
        all(start is None or text.startswith(start) for text, start in starts)
        and (query.since is None or entry.at >= query.since)
        and (query.until is None or entry.at < query.until)
        and (query.before is None or entry.sequence < query.before)
    )


def _append(connection: Connection, auditor: Auditor, actions: Sequence[Action]) -> tuple[Head | None, Head]:
    """The head that was there, and the new one."""
    head = _read_head(connection)
    _check_head(connection, auditor.signer, head)
    trail = head.trail if head else secrets.token_hex(16)
    number, link = (head.sequence, head.link) if head else (0, first_link(trail))
    who = actor() or auditor.who()
    if head is None or head.key_id != auditor.signer.key_id:
        # However a key came, made or added or put there by hand: it has no effect before it signs.
        begins = Action("key.signs", auditor.signer.key_id, before=digest_of(head.key_id if head else ""))
        actions = [replace(begins, after=digest_of(auditor.signer.key_id)), *actions]
    made = []
    for action in actions:
        number += 1
        entry = auditor.signer.entry(trail, link, new_entry(number, who, action))
        link = entry.link
        made.append(_VALUES(entry))
    new = auditor.signer.head(trail, number, link)
    if head is not None and len(made) == 1 and connection.dialect.name == "postgresql":
        # In one journey to the server.
        _run(connection, f"WITH entered AS ({_INSERT_ENTRY}) {_UPDATE_HEAD}", made[0] + _HEAD_VALUES(new))
        return head, new
    for values in made:
        _run(connection, _INSERT_ENTRY, values)
    _run(connection, _INSERT_HEAD if head is None else _UPDATE_HEAD, _HEAD_VALUES(new))
    return head, new


def _check_head(connection: Connection, signer: Signer, head: Head | None) -> None:
    """Refuse to go on behind a head that no holder of a key wrote: signing on would hide what was done."""
    if head is None:
        wrong = connection.execute(select(_ENTRIES.c.sequence).limit(1)).first() and "removed"
    else:
        wrong = None if signer.head_is_good(head) else "changed"
    if wrong:
        raise AuditError(
            f"the head of the library's audit trail was {wrong} by somebody without the key",
            hint="nothing was changed; take the library from a copy, or look with: esper audit verify",
        )


def _run(connection: Connection, statement: str, values: tuple[Any, ...] = ()) -> CursorResult[Any]:
    if connection.dialect.name == "postgresql":
        statement = statement.replace("?", "%s")
    return connection.exec_driver_sql(statement, values)


def _read_head(connection: Connection) -> Head | None:
    row = _run(connection, _READ_HEAD).first()
    return None if row is None else Head(**dict(zip(_HEAD, row, strict=True)))


def _entry(row: Any) -> Entry:
    return Entry(*row)


def _in_order(connection: Connection, after: int = _BEFORE_ALL) -> Iterator[Entry]:
    """All entries behind ``after``, a batch a statement."""
    while True:
        statement = select(_ENTRIES).where(_ENTRIES.c.sequence > after).order_by(_ENTRIES.c.sequence)
        batch = [_entry(row) for row in connection.execute(statement.limit(_BATCH))]
        yield from batch
        if len(batch) < _BATCH:
            return
        after = batch[-1].sequence


def _resign(connection: Connection, signer: Signer, after: int) -> tuple[int, int | None]:
    """Sign a batch behind ``after``; how many, and behind which to go on, None where that was the last."""
    trail = (_read_head(connection) or Head("", 0, "", "", "")).trail
    statement = select(_ENTRIES).where(_ENTRIES.c.sequence > after, _ENTRIES.c.key_id != signer.key_id)
    batch = [_entry(row) for row in connection.execute(statement.order_by("sequence").limit(_BATCH))]
    changed = 0
    for old in batch:
        if signer.entry_is_good(trail, old):  # what is not stays under its key, and is told by verify
            new = signer.signed(trail, old, old.digest)
            values = {"key_id": new.key_id, "mac": new.mac}
            connection.execute(update(_ENTRIES).where(_ENTRIES.c.sequence == old.sequence).values(values))
            changed += 1
    return changed, batch[-1].sequence if len(batch) == _BATCH else None


def _resign_head(connection: Connection, signer: Signer) -> tuple[Head, Head] | None:
    old = _read_head(connection)
    if old is None or old.key_id == signer.key_id or not signer.head_is_good(old):
        return None
    new = signer.head(old.trail, old.sequence, old.link)
    _run(connection, _UPDATE_HEAD, _HEAD_VALUES(new))
    return old, new
