"""``esper audit``: who changed what in the library and in runs, and whether the record of it is whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.errors import AuditError, ConfigError, StorageError
from esper_cli.completion import complete_names, complete_overrides
from esper_cli.runs import open_run, run_ids
from esper_cli.terminal import counted, print_json, print_lines, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.security.audit import Entry
    from esper.urza import KernelLibrary
    from esper.urza.trail import Verdict

app = typer.Typer(no_args_is_help=True, help="List, verify and export the audit trail.")

LIMIT = 50

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the configuration, such as urza=postgres.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Run = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="The trail of this run instead of the library's: an id, the start of one, or latest.",
        autocompletion=complete_names(lambda: ["latest", *run_ids()]),
    ),
]
Start = Annotated[str | None, typer.Option(metavar="TEXT", help="Only those that start so.")]
Time = Annotated[str | None, typer.Option(metavar="TIME", help="2026-11-23, or with a time, in UTC.")]


@app.command("ls", epilog="Example: esper audit ls --action kernel")
def list_entries(
    run: Run = None,
    action: Start = None,
    subject: Start = None,
    who: Start = None,
    since: Time = None,
    until: Time = None,
    before: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only entries before this one, to go on.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many.")] = LIMIT,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List entries, the newest first; what they say is not checked here."""
    from esper.urza.trail import TrailQuery, matches

    query = TrailQuery(action, subject, who, _time(since), _time(until), before, limit)
    if run is None:
        with _library(overrides or ()) as (_, library):
            found = library.trail.entries(query)
    else:
        from esper.assembly.audit_trails import run_entries

        entries = reversed(run_entries(_folder(run, overrides or ())))
        found = [entry for entry in entries if matches(entry, query)][:limit]
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    shown = table(["entry", "at", "who", "action", "subject", ""], right=["entry"], whole=["at", "action"])
    for entry in found:
        shown.add_row(*_cells(entry))
    print_lines(shown)
    if len(found) == limit and found[-1].sequence > 1:
        print_lines(f"older ones: --before {found[-1].sequence}", stderr=True)


@app.command("verify", epilog="Example: esper audit verify")
def verify_trails(
    run: Run = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What esper audit export wrote, instead.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Check the trails of the library and of all its runs; ends with 1 and names each entry that is wrong.

    An entry that was changed, removed, moved or put in shows, and so does a missing end.
    """
    if file is not None:
        verdicts = [_of_file(file, overrides or ())]
    else:
        verdicts = list(_verdicts(run, overrides or ()))
    if as_json:
        print_json([asdict(verdict) for verdict in verdicts])
    else:
        for verdict in verdicts:
            print_lines(*_told(verdict))
    if any(verdict.findings for verdict in verdicts):
        raise typer.Exit(1)


@app.command("export", epilog="Example: esper audit export > trail.jsonl")
def export_trail(run: Run = None, overrides: Overrides = None) -> None:
    """Print a trail as JSON lines, its head first: esper audit verify --file checks it where the key is."""
    from esper.assembly.audit_trails import export_run, exported

    if run is not None:
        lines = export_run(_folder(run, overrides or ()))
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    with _library(overrides or ()) as (_, library):
        lines = exported(library.trail.head(), library.trail.in_order())
        sys.stdout.writelines(f"{line}\n" for line in lines)


@contextmanager
def _library(overrides: Sequence[str]) -> Iterator[tuple[DictConfig, KernelLibrary]]:
    from esper.assembly.storage import build_library
    from esper_cli.config import compose

    cfg = compose(list(overrides))
    with build_library(cfg, adopt_later=True) as library:
        if not library.trail.kept:
            raise AuditError("a library in memory has no audit trail", hint="choose another: urza=sqlite")
        yield cfg, library


def _folder(run: str, overrides: Sequence[str]) -> Path:
    from esper_cli.config import compose

    return open_run(run, Path(compose(list(overrides)).runs)).folder


def _of_file(file: Path, overrides: Sequence[str]) -> Verdict:
    from esper.assembly.audit_trails import build_signer, verify_export
    from esper_cli.config import compose

    return verify_export(build_signer(compose(list(overrides))), file)


def _verdicts(run: str | None, overrides: Sequence[str]) -> Iterator[Verdict]:
    from esper.assembly.audit_trails import build_signer, gone_runs, verify_run
    from esper.assembly.file_changes import unfinished
    from esper.nissa.journal import COPY_NAME
    from esper.nissa.runs import RunStore

    with _library(overrides) as (cfg, library):
        signer, root = build_signer(cfg), Path(cfg.runs)
        if run is None:
            yield replace(library.trail.verify(), unfinished=tuple(unfinished(cfg, library)))
        chosen = RunStore(root).run_ids() if run is None else [open_run(run, root).run_id]
        there = set()
        for run_id in chosen:
            if (root / run_id / COPY_NAME).exists():
                print_lines(f"{run_id}: a copy of a run of another host, whose trail is there", stderr=True)
                continue
            verdict = verify_run(signer, root / run_id, library)
            if verdict is not None:
                there.add(run_id)
                yield verdict
            elif run is not None:
                raise StorageError(
                    f"run {run_id} has no audit trail", hint="it was begun before there was one"
                )
        if run is None:
            yield from gone_runs(signer, root, library, there)


def _told(verdict: Verdict) -> Iterator[str]:
    if verdict.trail is None:
        yield f"{verdict.place}: no entries yet; the trail begins with the next change"
        return
    entries = counted(verdict.entries, "entry", "entries")
    began = f", from {verdict.began.replace('+00:00', 'Z')} on" if verdict.began else ""
    yield f"{verdict.place}: {entries}{began}, {'NOT whole:' if verdict.findings else 'whole'}"
    yield from (f"  {finding.text}" for finding in verdict.findings)
    for change in verdict.unfinished:
        yield f"  entry {change.sequence}, {change.action} {change.subject}: {change.text}"


def _cells(entry: Entry) -> tuple[str, ...]:
    detail = "" if entry.detail in ("", "{}") else entry.detail
    at = entry.at.partition(".")[0].replace("T", " ")
    said = (at, entry.who, entry.action, entry.subject, detail)
    return str(entry.sequence), *map(_printable, said)


def _printable(text: str) -> str:
    """``text``, which is not checked, with what a terminal would act on written out."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _time(text: str | None) -> str | None:
    """A time as entries have it, which compares as text."""
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        hint = "write it as 2026-11-23 or 2026-11-23T18:00"
        raise ConfigError(f"{text!r} is no time", hint=hint) from None
    given = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return given.isoformat(timespec="milliseconds")
