"""Entries of an audit trail: who changed what and when, each bound to all that came before it.

For callers: what is changed in the library has its entry without a word, in the transaction of the change.
Inside ``with acting("token NAME"):`` it is by that name, also in threads that ``run_in_threadpool`` starts.
What is no change of the library itself (a token, a request to a run) is noted *before* it takes effect:
``KernelLibrary.note(Action("token.issued", token_id, after=digest_of(...), detail={"role": "viewer"}))``.

An entry ``n`` has a digest of what it says, ``link(n) = SHA-256(link(n - 1), digest(n))`` and an HMAC-SHA256
over trail, ``n``, link and digest. The newest number and link stand apart, in the *head*, under an HMAC with
another key. docs/decisions/0124 has the reasons.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from esper.errors import UnknownKey
from esper.security.keys import Key, Keys

MAX_TEXT: Final = 400
"""Characters of a name or a subject; what is longer is cut."""

MAX_DETAIL: Final = 4000
"""Characters of the JSON of a detail; one that is longer is replaced by its digest."""

_actor: ContextVar[str | None] = ContextVar("esper_actor", default=None)


@contextmanager
def acting(who: str) -> Iterator[None]:
    """What is changed inside the block is by ``who``: a name that may stand in the trail as it is."""
    token = _actor.set(who[:MAX_TEXT])
    try:
        yield
    finally:
        _actor.reset(token)


def actor() -> str | None:
    """Who acts, if somebody said so."""
    return _actor.get()


@dataclass(frozen=True, slots=True)
class Action:
    """What is to be entered: ``what`` was done to ``subject``, and SHA-256 of it ``before`` and ``after``.

    A digest is empty where there was, or is, nothing. ``detail`` is plain data for people.
    """

    what: str
    subject: str
    before: str = ""
    after: str = ""
    detail: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a trail. ``at`` is ISO 8601 in UTC, ``detail`` JSON, ``link`` and ``mac`` hexadecimal."""

    sequence: int
    at: str
    who: str
    action: str
    subject: str
    before: str
    after: str
    detail: str
    link: str = ""
    key_id: str = ""
    mac: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what the entry says."""
        said = [self.sequence, self.at, self.who, self.action, self.subject]
        return _sha256(canonical([*said, self.before, self.after, self.detail]))


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of a trail, apart from the entries: without it a missing end would not show."""

    trail: str
    sequence: int
    link: str
    key_id: str
    mac: str


class Signer:
    """Makes and checks the authenticators of entries and heads, and pseudonyms, with keys of their own.

    May raise what its keys raise: ``SecurityError`` or ``StorageError``.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._derived: dict[tuple[str, str], bytes] = {}

    @property
    def key_id(self) -> str:
        """The id of the key that signs."""
        return self._keys.primary.id

    def has(self, key_id: str) -> bool:
        """Whether the key of that id is at hand."""
        try:
            self._keys.key(key_id)
        except UnknownKey:
            return False
        return True

    def entry(self, trail: str, previous: str, entry: Entry) -> Entry:
        """``entry``, linked to the one whose link is ``previous`` and signed."""
        digest = entry.digest
        return self.signed(trail, replace(entry, link=link_of(previous, digest)), digest)

    def signed(self, trail: str, entry: Entry, digest: str) -> Entry:
        """``entry``, which says what has that ``digest`` and has its link, signed with the primary key."""
        key = self._keys.primary
        return replace(
            entry, key_id=key.id, mac=self._mac(key, "audit entries", _bound(trail, entry, digest))
        )

    def head(self, trail: str, sequence: int, link: str) -> Head:
        """The head of a trail whose newest entry has that number and link."""
        key = self._keys.primary
        return Head(
            trail, sequence, link, key.id, self._mac(key, "audit heads", _head_bound(trail, sequence, link))
        )

    def entry_is_good(self, trail: str, entry: Entry) -> bool:
        """Whether a holder of a key wrote what the entry says, at its number."""
        return self._good("audit entries", entry.key_id, _bound(trail, entry, entry.digest), entry.mac)

    def head_is_good(self, head: Head) -> bool:
        """Whether a holder of a key wrote this head."""
        bound = _head_bound(head.trail, head.sequence, head.link)
        return self._good("audit heads", head.key_id, bound, head.mac)

    def pseudonym(self, kind: str, name: str) -> str:
        """A name for ``name`` that only a holder of the key can tell, the same until the key is another."""
        return f"{kind}-{self._mac(self._keys.primary, 'pseudonyms', canonical([kind, name]))[:12]}"

    def _good(self, purpose: str, key_id: str, message: bytes, mac: str) -> bool:
        if not self.has(key_id):
            return False
        made = self._mac(self._keys.key(key_id), purpose, message)
        return hmac.compare_digest(made.encode(), _bytes(mac))

    def _mac(self, key: Key, purpose: str, message: bytes) -> str:
        place = (key.id, purpose)
        if place not in self._derived:
            self._derived[place] = key.derived(purpose)
        return hmac.digest(self._derived[place], message, "sha256").hex()


def new_entry(sequence: int, who: str, action: Action) -> Entry:
    """An entry, neither linked nor signed, of what ``who`` does now."""
    detail = canonical(dict(action.detail or {})).decode()
    if len(detail) > MAX_DETAIL:
        detail = canonical({"sha256": _sha256(detail.encode())}).decode()
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    subject = action.subject[:MAX_TEXT]
    return Entry(sequence, at, who[:MAX_TEXT], action.what, subject, action.before, action.after, detail)


def first_link(trail: str) -> str:
    """What the first entry of a trail is linked to."""
    return _sha256(_bytes(f"esper audit 1 {trail}"))


def link_of(previous: str, digest: str) -> str:
    """The link of an entry with that digest behind the link ``previous``."""
    return _sha256(_bytes(f"{previous}{digest}"))


def digest_of(data: Any) -> str:
    """SHA-256 of plain data, for what was before and after."""
    return _sha256(canonical(data))


def canonical(data: Any) -> bytes:
    """Plain data as JSON that is the same wherever it is made."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _bound(trail: str, entry: Entry, digest: str) -> bytes:
    return _bytes(f"{trail} {entry.sequence} {entry.link} {digest}")


def _head_bound(trail: str, sequence: int, link: str) -> bytes:
    return _bytes(f"{trail} {sequence} {link}")


def _bytes(text: str) -> bytes:
    """Of any text, also one that somebody put there and that UTF-8 has not."""
    return text.encode(errors="surrogatepass")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
