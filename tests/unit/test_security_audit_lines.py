"""The audit trail in a run's journal: a line and its entry are one, and whatever is done to it is found."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forked
import pytest
from urza_support import KEY

from esper.errors import AuditError, StorageError
from esper.nissa.journal import Journal
from esper.nissa.journal_reader import JournalReader
from esper.security import KeyRing
from esper.security.audit import Signer, link_of
from esper.security.audit_check import Finding, check_trail
from esper.security.audit_heads import write_head
from esper.security.audit_lines import HEAD_NAME, LineTrail, audited_lines, head_of

SIGNER = Signer(KeyRing((KEY,), "the tests"))


def trail() -> LineTrail:
    return LineTrail(SIGNER, lambda: "user-test")


def write(path: Path, count: int, first: int = 0) -> None:
    with Journal(path, trail=trail()) as journal:
        for number in range(first, first + count):
            journal.write("decision", epoch=number, note='","audit":{"trail":"00","n":1}')
            journal.write("epoch", epoch=number)


def findings(path: Path) -> list[Finding]:
    lines = list(audited_lines(path))
    head = head_of(path)
    heads = [(HEAD_NAME, head)] if head else []
    return list(check_trail(SIGNER, lines[0].trail if lines else "", [line.entry for line in lines], heads))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "journal.jsonl", 10)
    return tmp_path / "journal.jsonl"


def test_each_audited_line_has_an_entry_and_others_have_none(path: Path) -> None:
    events = list(JournalReader(path).read())
    assert len(events) == 20
    assert [event["audit"]["n"] for event in events if "audit" in event] == list(range(1, 11))
    assert {event["event"] for event in events if "audit" in event} == {"decision"}
    assert [line.number for line in audited_lines(path)] == list(range(1, 21, 2))
    assert findings(path) == []


def test_who_goes_on_links_to_what_is_there(path: Path) -> None:
    write(path, 5, first=10)
    assert len(list(audited_lines(path))) == 15
    assert findings(path) == []


def changed(do: Callable[[list[bytes]], object]) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        do(lines)
        return lines

    return change


def replaced(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        assert old in lines[number]
        lines[number] = lines[number].replace(old, new)
        return lines

    return change


@pytest.mark.parametrize(
    ("name", "attack", "wanted"),
    [
        ("edit", replaced(8, b'"epoch":4', b'"epoch":5'), 5),
        ("edit of who", replaced(8, b"user-test", b"user-else"), 5),
        ("edit of the name", replaced(8, b'"event":"decision"', b'"event":"trial"'), 5),
        ("edit of the number", replaced(8, b'"n":5', b'"n":4'), 4),
        ("entry stripped", replaced(8, b'"n":5', b'"m":5'), 5),
        ("a link that is no text", replaced(8, b'"link":"', b'"link":"\\ud800'), 5),
        ("an authenticator that is no text", replaced(8, b'"mac":"', b'"mac":"\\ud800'), 5),
        ("deletion", changed(lambda lines: lines.pop(8)), 5),
        ("reorder", changed(lambda lines: lines.insert(8, lines.pop(10))), 5),
        ("insertion of a copy", changed(lambda lines: lines.insert(9, lines[8])), 5),
        ("insertion of an older one", changed(lambda lines: lines.insert(12, lines[2])), 2),
        ("tail cut", lambda lines: lines[:14], 8),
        ("all but the first cut", lambda lines: lines[:1], 2),
    ],
)
def test_what_is_done_to_the_journal_is_found_and_the_entry_named(
    path: Path, name: str, attack: Callable[[list[bytes]], list[bytes]], wanted: int
) -> None:
    path.write_bytes(b"".join(attack(path.read_bytes().splitlines(keepends=True))))
    found = findings(path)
    assert found, name
    assert found[0].sequence == wanted, found


def test_a_run_that_goes_on_behind_a_cut_does_not_hide_it(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:14]))
    write(path, 3)
    assert [(each.wrong, each.sequence) for each in findings(path)] == [("missing", 8)]


def test_nobody_goes_on_behind_a_forged_head(path: Path) -> None:
    head = head_of(path)
    assert head is not None
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:14]))
    write_head(path.with_name(HEAD_NAME), replace(head, sequence=7))
    with pytest.raises(AuditError, match="not what a holder of a key wrote"):
        Journal(path, trail=trail())


def foreign(path: Path) -> bytes:
    """A line of another journal of the same key, whose number comes next."""
    other = path.with_name("other") / path.name
    other.parent.mkdir()
    write(other, 11)
    return other.read_bytes().splitlines(keepends=True)[20]


def forged(path: Path) -> bytes:
    """A line that nobody with a key wrote, linked as it should be."""
    last = list(audited_lines(path))[-1]
    entry = replace(last.entry, sequence=11, key_id="0" * 16, who="user-else")
    said = b'{"event":"decision","at":"2026-11-28T00:00:00.000+00:00","epoch":11'
    digest = replace(entry, after=hashlib.sha256(said).hexdigest()).digest
    link = link_of(last.entry.link, digest)
    fields = {
        "trail": last.trail,
        "n": 11,
        "who": "user-else",
        "link": link,
        "key": "0" * 16,
        "mac": "0" * 64,
    }
    return said + b',"audit":' + json.dumps(fields, separators=(",", ":")).encode() + b"}\n"


@pytest.mark.parametrize("line", [foreign, forged])
def test_nobody_goes_on_behind_a_line_that_was_put_in_at_the_end(
    path: Path, line: Callable[[Path], bytes]
) -> None:
    """The next head would vouch for it."""
    path.write_bytes(path.read_bytes() + line(path))
    assert len(list(audited_lines(path))) == 11
    assert [finding.sequence for finding in findings(path)] == [11]
    with pytest.raises(AuditError, match=r"entry 11 of .* is not what a holder of a key wrote"):
        Journal(path, trail=trail())


def test_a_head_that_is_behind_is_no_alarm_and_one_that_is_damaged_an_error(path: Path) -> None:
    lines = list(audited_lines(path))
    eighth = lines[7]
    write_head(path.with_name(HEAD_NAME), SIGNER.head(eighth.trail, 8, eighth.entry.link))
    assert findings(path) == []
    write(path, 1)
    assert findings(path) == []
    assert len(list(audited_lines(path))) == 11
    path.with_name(HEAD_NAME).write_text("{}")
    with pytest.raises(AuditError, match="is damaged"):
        Journal(path, trail=trail())


def test_a_line_that_was_not_written_has_used_no_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path, trail=trail())
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space"):
            journal.write("decision", epoch=10)
    journal.write("decision", epoch=11)
    journal.close()
    assert findings(path) == []


def full(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def write_for_long(path: Path) -> None:
    print("begun", flush=True)
    write(path, 10**9)


def test_a_killed_writer_leaves_a_line_with_its_entry_or_neither(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for attempt in range(4):
        with forked.Forked(write_for_long, (path,), None, None) as process:
            process.until("begun")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1 * (attempt + 1))
            process.send(signal.SIGKILL)
        assert findings(path) == []
    events = list(JournalReader(path).read())
    audited = [event for event in events if event["event"] == "decision"]
    assert [event["audit"]["n"] for event in audited] == list(range(1, len(audited) + 1))
    assert json.loads(path.with_name(HEAD_NAME).read_text())["sequence"] in (len(audited), len(audited) - 1)
