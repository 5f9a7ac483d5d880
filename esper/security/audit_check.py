"""Whether a trail is whole: which entries were changed, removed, moved or put in, and whether it was cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from esper.security.audit import Entry, Head, Signer, first_link, link_of

Wrong = Literal["changed", "missing", "moved", "inserted", "head", "cut", "unknown key"]
"""What can be wrong: an entry, a gap, the head itself, or the end of the trail."""

MOST: Final = 1000
"""Findings that are told; a trail of which more is wrong is not told apart from another one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the entry ``sequence``, in words for people."""

    wrong: Wrong
    sequence: int
    text: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A change outside the library that was entered as begun, and not as done: whether it was, in words too.

    ``done`` is None where that cannot be told.
    """

    sequence: int
    action: str
    subject: str
    done: bool | None
    text: str


def check_trail(
    signer: Signer,
    trail: str,
    entries: Iterable[Entry],
    heads: Sequence[tuple[str, Head]],
    *,
    by_chain: bool = False,
) -> Iterator[Finding]:
    """Each entry that is not what was written at its number, of ``entries`` in the order in which they lie.

    ``heads`` are what is known of the newest entry, each with the place that says so: as many entries must be
    there, and that one must have that link. ``by_chain``: an entry of a key that is not at hand is good where
    each entry follows on the one before it, up to one that a good head knows.
    """
    links: dict[int, str] = {}
    wanted = {head.sequence for _, head in heads}
    last = unbroken = 0
    unsigned: list[Finding] = []
    previous: str | None = first_link(trail)
    for entry in entries:
        in_order = entry.sequence == last + 1
        found = [*_place(entry, last), *_content(signer, trail, entry, previous if in_order else None)]
        if entry.sequence == unbroken + 1 and not any(each.wrong != "unknown key" for each in found):
            unbroken += 1
        for each in found:
            if by_chain and each.wrong == "unknown key":
                unsigned.append(each)
            else:
                yield each
        if entry.sequence in wanted:
            links[entry.sequence] = entry.link
        last, previous = max(last, entry.sequence), entry.link
    known = 0
    for place, head in heads:
        wrong = list(_end(signer, trail, place, head, last, links.get(head.sequence)))
        if not wrong and head.sequence <= unbroken:
            known = max(known, head.sequence)
        yield from wrong
    yield from (each for each in unsigned if each.sequence > known)


def _place(entry: Entry, last: int) -> Iterator[Finding]:
    number = entry.sequence
    if number > last + 1:
        yield Finding("missing", last + 1, f"{_numbers(last + 1, number - 1)} missing")
    elif number <= last:
        text = f"entry {number} stands behind entry {last}: it was moved there, or stands twice"
        yield Finding("moved", number, text)


def _content(signer: Signer, trail: str, entry: Entry, previous: str | None) -> Iterator[Finding]:
    number = entry.sequence
    if not signer.has(entry.key_id):
        text = f"entry {number} is signed with key {entry.key_id!r}, which is not at hand"
        yield Finding("unknown key", number, text)
    elif not signer.entry_is_good(trail, entry):
        text = f"entry {number} is not what was written there: it was changed, moved or put in"
        yield Finding("changed", number, text)
        return
    if previous is not None and entry.link != link_of(previous, entry.digest):
        text = f"entry {number} does not follow on the one before it"
        yield Finding("inserted", number, text)


def _end(
    signer: Signer, trail: str, place: str, head: Head, last: int, link: str | None
) -> Iterator[Finding]:
    number = head.sequence
    if not signer.has(head.key_id):
        yield Finding("unknown key", number, f"{place} is signed with key {head.key_id!r}, not at hand")
    elif not signer.head_is_good(head):
        yield Finding("head", number, f"{place}, of {number} entries, is not what a holder of a key wrote")
    elif head.trail != trail:
        text = (
            f"{place} is of another trail, of {number} entries: this one was begun anew, or exchanged; "
            "if that was you, remove that file"
        )
        yield Finding("head", number, text)
    elif number > last:
        text = f"{_numbers(last + 1, number)} missing at the end: {place} knows {number} entries"
        yield Finding("cut", last + 1, text)
    elif link != head.link:
        text = f"entry {number} is another one than {place} knows"
        yield Finding("changed", number, text)


def _numbers(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
