"""``esper keys``: the keys that the kernel library is sealed with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from esper.errors import SecurityError, UnknownKey
from esper_cli.completion import complete_overrides
from esper_cli.terminal import console, counted, print_json, print_lines, table

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from esper.security import KeyRing, KeySource
    from esper.urza import KernelLibrary

app = typer.Typer(no_args_is_help=True, help="List, add, rotate and remove the keys of the library.")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the configuration, such as security=environment.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def tell_key_made(place: str) -> None:
    """Say on stderr where the key lies that was made just now."""
    from esper.assembly.keys import key_made_notice

    print_lines(key_made_notice(place), stderr=True)


@app.command("ls", epilog="Example: esper keys ls")
def list_keys(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """List the keys, and how many blobs and records, audit entries, and runs each is needed for."""
    cfg, source = _configured(overrides or ())
    ring = source.load()
    with _library(cfg) as library:
        needed, entries = library.sealed_by(), library.trail.signed_by()
    runs = {key_id: len({*of.journals, *of.going_on, *of.checkpoints}) for key_id, of in _runs(cfg).items()}
    rows = [
        {
            "id": key_id,
            "made": made,
            "primary": key_id == ring.primary.id,
            "origin": origin,
            "needed_for": needed.get(key_id, 0),
            "audit_entries": entries.get(key_id, 0),
            "runs": runs.get(key_id, 0),
        }
        for key_id, made, origin in [
            *((key.id, key.made, ring.origin) for key in ring.keys),
            *((key_id, None, None) for key_id in sorted(_missing({**needed, **entries, **runs}, ring))),
        ]
    ]
    if as_json:
        print_json(rows)
        return
    columns = ["key", "made", "", "needed for", "entries", "runs", "from"]
    shown = table(columns, right=["needed for", "entries", "runs"], whole=["key", "made"])
    for row in rows:
        what = "seals" if row["primary"] else "" if row["origin"] else "missing"
        made = str(row["made"] or "").replace("+00:00", "Z")
        numbers = (str(row[name]) for name in ("needed_for", "audit_entries", "runs"))
        shown.add_row(str(row["id"]), made, what, *numbers, str(row["origin"] or ""))
    print_lines(shown)
    if needed.get(""):
        are = "is" if needed[""] == 1 else "are"
        print_lines(f"{_stored(needed[''])} {are} not sealed; to seal: esper keys adopt")


@app.command("add", epilog="Example: esper keys add")
def add_key(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Make a key that seals from now on. What the older ones sealed can still be read."""
    cfg, source = _configured(overrides or ())
    with _library(cfg) as library:
        ring = _added(source, library)
    if as_json:
        print_json({"id": ring.primary.id, "made": ring.primary.made, "origin": ring.origin})
    else:
        _print_added(ring)


@app.command("rotate", epilog="Example: esper keys rotate")
def rotate_keys(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Move the whole library and the journals of runs to a new key, or go on where that was stopped.

    The headers of what is stored are rewritten, not the kernels, nor lines of a journal. No key is made while
    something in the library has an older one than that which seals now, as after esper keys add: it is moved
    to that one first. Checkpoints stay under the key that they have. A run that goes on takes the newer key
    by itself, for what it writes from then on.
    """
    from esper.assembly.audit_trails import build_signer
    from esper.assembly.run_keys import resign_journals

    cfg, source = _configured(overrides or ())
    ring = source.load()
    with _library(cfg) as library:
        needed = _needed(library)
        for key_id in _missing(needed, ring):
            raise UnknownKey(key_id, ring.origin)
        if not any(needed.get(key.id) for key in ring.keys[1:]):
            ring = _added(source, library)
            if not as_json:
                _print_added(ring)
    try:
        with _library(cfg) as library, _shown("moving to the new key") as progress:
            # Before the library, which says whether a rotation was stopped.
            journals = list(resign_journals(build_signer(cfg), Path(cfg.runs), library))
            moved = library.reseal(progress)
            left = _needed(library)
    except KeyboardInterrupt:
        print_lines("stopped; the library is whole. Go on with: esper keys rotate", stderr=True)
        raise
    runs = _runs(cfg)
    idle = [key.id for key in ring.keys[1:] if not left.get(key.id) and key.id not in runs]
    kept = {key.id: left[key.id] for key in ring.keys[1:] if left.get(key.id)}
    if as_json:
        of_runs = {key.id: asdict(runs[key.id]) for key in ring.keys[1:] if key.id in runs}
        done = {"primary": ring.primary.id, "moved": moved, "journals": len(journals)}
        print_json({**done, "no_longer_needed": idle, "kept": kept, "kept_for_runs": of_runs})
        return
    told = f"{_stored(moved)}, and {counted(len(journals), 'journal')},"
    print_lines(f"moved {told} to key {ring.primary.id}")
    for key_id, number in kept.items():
        what = counted(number, "blob, record or audit entry", "blobs, records and audit entries")
        print_lines(f"key {key_id} is still needed for {what}; which: esper kernels verify --all")
    for key in ring.keys[1:]:
        print_lines(*(f"key {key.id} is still needed for {what}" for what in _told_of_runs(runs.get(key.id))))
    if idle:
        print_lines("no longer needed: " + ", ".join(idle), *(f"  esper keys rm {key_id}" for key_id in idle))


@app.command("rm", epilog="Example: esper keys rm 0123456789abcdef")
def remove_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], overrides: Overrides = None
) -> None:
    """Remove a key that seals nothing in the library of this configuration, and in none of its runs."""
    from esper.assembly.file_changes import entered
    from esper.security.sources import changed

    cfg, source = _configured(overrides or ())

    def without(ring: KeyRing) -> KeyRing:
        if key_id == ring.primary.id:
            raise SecurityError(f"key {key_id} is the one that seals", hint="esper keys rotate")
        smaller = ring.without(key_id)
        if number := _needed(library).get(key_id, 0):
            what = counted(number, "blob, record or audit entry", "blobs, records and audit entries")
            raise SecurityError(f"key {key_id} is needed for {what}", hint="esper keys rotate")
        for what in _told_of_runs(_runs(cfg).get(key_id)):
            raise SecurityError(f"key {key_id} is needed for {what}")
        return smaller

    with _library(cfg) as library, entered(library, "key.removing", key_id) as announce:
        changed(source, without, announce)
    print_lines(f"removed key {key_id}")


@app.command("adopt", epilog="Example: esper keys adopt")
def adopt_kernels(overrides: Overrides = None) -> None:
    """Seal a library that was not. This vouches for its kernels: nobody else may have written there."""
    from esper.assembly.storage import build_library

    cfg, _ = _configured(overrides or ())
    with (
        build_library(cfg, on_key_made=tell_key_made, adopt_later=True) as library,
        _shown("sealing") as progress,
    ):
        found = library.adopt(progress)
    print_lines(f"sealed {counted(found, 'kernel')}")


def _configured(overrides: Sequence[str]) -> tuple[DictConfig, KeySource]:
    from esper.assembly.keys import build_key_source
    from esper_cli.config import compose

    cfg = compose(list(overrides))
    return cfg, build_key_source(cfg)


def _library(cfg: DictConfig) -> KernelLibrary:
    """The library, as it is: what is not sealed stays so."""
    from esper.assembly.storage import build_library

    return build_library(cfg, adopt_later=True)


def _stored(number: int) -> str:
    return counted(number, "blob or record", "blobs and records")


def _needed(library: KernelLibrary) -> Counter[str]:
    """How many blobs, records and audit entries each key is needed for."""
    return Counter(library.sealed_by()) + Counter(library.trail.signed_by())


@dataclass
class _OfRuns:
    """The runs whose journal, or of whose checkpoints some, need a key; journals of runs that go on apart."""

    journals: list[str] = field(default_factory=list)
    going_on: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)


def _runs(cfg: DictConfig) -> dict[str, _OfRuns]:
    """What each key is needed for in the runs of the configuration."""
    from esper.assembly.audit_trails import build_signer
    from esper.assembly.run_keys import needs_of_runs

    found: defaultdict[str, _OfRuns] = defaultdict(_OfRuns)
    for needs in needs_of_runs(build_signer(cfg), Path(cfg.runs)):
        for key_id in needs.journal:
            of_key = found[key_id]
            (of_key.going_on if needs.goes_on else of_key.journals).append(needs.run_id)
        for key_id in needs.checkpoints:
            found[key_id].checkpoints.append(needs.run_id)
    return dict(found)


def _told_of_runs(runs: _OfRuns | None) -> Iterator[str]:
    if runs and runs.journals:
        why = "esper keys rotate moves it; if it does not, see esper audit verify"
        yield f"the audit trail of {_named(runs.journals)}: {why}"
    if runs and runs.going_on:
        then = "until the next decision there; once it has ended: esper keys rotate"
        yield f"the audit trail of {_named(runs.going_on)}, {then}"
    if runs and runs.checkpoints:
        yield f"checkpoints of {_named(runs.checkpoints)}: esper checkpoints rm, or keep the key"


def _named(run_ids: Sequence[str]) -> str:
    more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
    return f"run {run_ids[-1]}{more}"


def _added(source: KeySource, library: KernelLibrary) -> KeyRing:
    from esper.assembly.file_changes import entered
    from esper.security import new_key
    from esper.security.sources import changed

    ring, made = source.load_or_make()
    if made:
        return ring  # which the trail says when it signs for the first time
    key = new_key()
    with entered(library, "key.adding", key.id) as announce:
        return changed(source, lambda ring: ring.with_primary(key), announce)


def _print_added(ring: KeyRing) -> None:
    print_lines(f"made key {ring.primary.id} in {ring.origin}, which seals from now on; keep a copy of it")


def _missing(needed: Mapping[str, int], ring: KeyRing) -> set[str]:
    return set(needed) - {"", *(key.id for key in ring.keys)}


@contextmanager
def _shown(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where somebody looks."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console(stderr=True),
        transient=True,
        disable=not console(stderr=True).is_terminal,
    )
    with bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
