"""The audit trails of a configuration, read: that of its library, and those of its runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from omegaconf import DictConfig

from esper.assembly.auditing import place_of_runs
from esper.assembly.keys import build_keys
from esper.assembly.storage import build_library
from esper.errors import AuditError, ConfigError, StorageError
from esper.nissa.journal import JOURNAL_NAME
from esper.security.audit import Action, Entry, Head, Signer
from esper.security.audit_check import Finding, check_trail
from esper.security.audit_lines import HEAD_NAME, Line, audited_lines, head_of
from esper.urza.library import KernelLibrary
from esper.urza.trail import TrailQuery, Verdict

R = TypeVar("R", Entry, Head)

_MOST_LINE: Final = 2**16
"""Bytes of a line of an export; an entry takes less than 6,000."""


def note(cfg: DictConfig, action: Action) -> None:
    """Enter ``action``, which is no change of the library, in its trail: before it takes effect."""
    with build_library(cfg, adopt_later=True) as library:
        library.note(action)


def build_signer(cfg: DictConfig) -> Signer:
    """What checks trails with the keys of ``cfg.security``."""
    return Signer(build_keys(cfg))


def verify_run(signer: Signer, folder: Path, library: KernelLibrary) -> Verdict | None:
    """Check the trail in the journal of the run in ``folder``, also against what the library knows of it.

    None for a run that has none, as one from before there were trails.
    """
    checked = checked_run(signer, folder, library)
    return None if checked is None else checked[0]


def checked_run(signer: Signer, folder: Path, library: KernelLibrary) -> tuple[Verdict, list[Line]] | None:
    """As :func:`verify_run`, with the lines that were checked."""
    journal = folder / JOURNAL_NAME
    beside, damaged = None, None
    try:
        beside = head_of(journal)  # before the lines, so that it is never newer than they are
    except AuditError as error:
        damaged = error.message
    lines = list(audited_lines(journal))
    trail = lines[0].trail if lines else beside.trail if beside else ""
    heads = [(HEAD_NAME, beside)] if beside else []
    for entry in _ends(signer, folder.name, library):
        number = json.loads(entry.detail).get("entries", 0)
        heads.append((f"entry {entry.sequence} of the library", signer.head(trail, number, entry.after)))
    if not lines and not heads and not damaged:
        return None
    entries = [line.entry for line in lines]
    findings = list(check_trail(signer, trail, entries, heads, by_chain=True))
    if damaged or (lines and beside is None):
        text = damaged or f"there is no {HEAD_NAME} beside the journal"
        findings.append(Finding("head", len(lines), text))
    began = lines[0].at if lines else None
    return Verdict(folder.name, trail, began, len(lines), tuple(findings)), lines


def gone_runs(
    signer: Signer, root: Path, library: KernelLibrary, there: Collection[str]
) -> Iterator[Verdict]:
    """On each run that began below ``root`` and is not ``there``, and whose removal nobody entered."""
    head = library.trail.head()
    trail, place = head.trail if head else "", place_of_runs(root)
    known = set(there)
    for entry in library.trail.entries(TrailQuery(action="run.")):  # the newest first
        if entry.subject in known or not signer.entry_is_good(trail, entry):
            continue
        if entry.action == "run.removed":
            known.add(entry.subject)
        elif entry.action == "run.began" and json.loads(entry.detail).get("below") == place:
            text = f"it is gone, and began here, as entry {entry.sequence} of the library says"
            hint = f"if you removed it: esper runs rm {entry.subject}"
            yield Verdict(entry.subject, "", entry.at, 0, (Finding("missing", 1, f"{text}; {hint}"),))


def _ends(signer: Signer, run_id: str, library: KernelLibrary) -> list[Entry]:
    """Where the run ended, as a holder of a key entered it in the trail of the library."""
    head = library.trail.head()
    found = library.trail.entries(TrailQuery(action="run.ended", subject=run_id))
    return [
        entry
        for entry in found
        if entry.subject == run_id and head is not None and signer.entry_is_good(head.trail, entry)
    ]


def run_entries(folder: Path) -> list[Entry]:
    """The entries in the journal of the run in ``folder``, unchecked, each with the time of its line."""
    return [line.shown for line in audited_lines(folder / JOURNAL_NAME)]


def exported(head: Head | None, entries: Iterable[Entry]) -> Iterator[str]:
    """A trail as lines of JSON, the head first, as :func:`verify_export` takes them."""
    if head is None:
        raise AuditError("there is no audit trail to export", hint="it begins with the first change")
    yield json.dumps({"esper_audit": 1, "head": asdict(head)})
    for entry in entries:
        yield json.dumps(asdict(entry))


def export_run(folder: Path) -> Iterator[str]:
    """The trail of the run in ``folder`` as :func:`exported` writes one."""
    journal = folder / JOURNAL_NAME
    return exported(head_of(journal), (line.entry for line in audited_lines(journal)))


def verify_export(signer: Signer, path: Path) -> Verdict:
    """Check the file that an export wrote; raises ConfigError for another file, StorageError."""
    try:
        with path.open(encoding="utf-8") as file:
            head = _exported_head(path, file.readline(_MOST_LINE))
            entries = [_record(Entry, _line(path, line)) for line in file]
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot read") from error
    except (TypeError, UnicodeDecodeError):
        raise _no_export(path) from None
    heads = [("the head of the export", head)]
    findings = tuple(check_trail(signer, head.trail, entries, heads, by_chain=True))
    return Verdict(str(path), head.trail, entries[0].at if entries else None, len(entries), findings)


def _exported_head(path: Path, line: str) -> Head:
    first = _line(path, line)
    if first.get("esper_audit") != 1 or not isinstance(first.get("head"), dict):
        raise _no_export(path)
    return _record(Head, first["head"])


def _record(kind: type[R], found: Mapping[str, Any]) -> R:
    """A ``kind`` of these fields; TypeError for others, or other types."""
    record = kind(**found)
    for field in fields(record):
        if type(getattr(record, field.name)) is not (int if field.name == "sequence" else str):
            raise TypeError
    return record


def _line(path: Path, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise _no_export(path) from None
    if not isinstance(found, dict):
        raise _no_export(path)
    return found


def _no_export(path: Path) -> ConfigError:
    return ConfigError(f"{path} is no exported audit trail", hint="write one with: esper audit export")
