"""``esper kernels``: show, remove and verify the kernels of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from esper.errors import ConfigError, CorruptKernel, EsperError, KernelNotFound, LibraryError
from esper.messages import KernelMetadata
from esper_cli.completion import complete_overrides
from esper_cli.keys import tell_key_made
from esper_cli.terminal import console, counted, print_json, print_lines, table

if TYPE_CHECKING:
    from esper.urza import KernelLibrary, KernelQuery, Page

app = typer.Typer(
    no_args_is_help=True, help="List, show, tag, exchange, harvest, verify and remove compiled kernels."
)

PREFIX = "kernel_"
"""What ids begin with; it may be left out."""
PAGE = 500
"""How many kernels are read at a time where all are gone through."""
OFFERED = 100
"""How many ids a completion offers at most."""
TRIALS = 50
"""How many trials of a kernel are listed below it; JSON has all."""


@contextmanager
def library(overrides: Sequence[str] = (), *, make: bool = True) -> Iterator[KernelLibrary]:
    """The library of the configuration, closed at the end; made if it is not there, unless not ``make``."""
    from esper.assembly.storage import build_library
    from esper_cli.config import compose

    opened = build_library(compose(list(overrides)), on_key_made=tell_key_made, make=make)
    try:
        yield opened
    finally:
        opened.close()


def complete_ids(incomplete: str) -> list[str]:
    """The ids that ``incomplete`` may become, whole or without what all ids begin with."""
    from esper.urza import KernelQuery

    try:
        with library() as opened:
            found = opened.query(KernelQuery(id_prefix=incomplete, sort="id", limit=OFFERED))
    except (EsperError, OSError):
        return []
    ids = [kernel.kernel_id for kernel in found]
    return [name if name.startswith(incomplete) else name.removeprefix(PREFIX) for name in ids]


def in_pages(opened: KernelLibrary, query: KernelQuery) -> Iterator[KernelMetadata]:
    """All that ``query`` describes, never more in memory than a page."""
    for page in pages(opened, replace(query, limit=None)):
        yield from page.kernels


def pages(opened: KernelLibrary, query: KernelQuery) -> Iterator[Page]:
    """What ``query`` describes a page at a time: one at least, and as many kernels as it may have in all."""
    left = sys.maxsize if query.limit is None else query.limit
    while True:
        page = opened.page(replace(query, limit=min(left, PAGE)))
        yield page
        left -= len(page.kernels)
        if page.next is None or not left:
            return
        query = replace(query, after=page.next)


@contextmanager
def counting(what: str, *, shown: bool = True) -> Iterator[Callable[[], object]]:
    """What to call after each kernel; how many they were stands on stderr, where somebody looks."""
    columns = (TextColumn(what), TextColumn("{task.completed:,.0f} kernels"), TimeElapsedColumn())
    out = console(stderr=True)
    bar = Progress(
        *columns,
        console=out,
        transient=True,
        redirect_stdout=False,
        disable=not (shown and out.is_terminal),
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda: bar.advance(task)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the configuration, such as where the library is.",
        autocompletion=complete_overrides,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KernelId = Annotated[
    str,
    typer.Argument(metavar="ID", help="A kernel's id, or the start of one.", autocompletion=complete_ids),
]
KernelIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID|KEY=VALUE",
        help="Ids, or the starts of ids; overrides of the configuration.",
        autocompletion=complete_ids,
    ),
]


@app.command("show", epilog="Example: esper kernels show kernel_13c6")
def show_kernel(kernel_id: KernelId, as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Show all that is known of a kernel: its numbers, its trials, its blueprint."""
    with library(overrides or ()) as opened:
        kernel = resolve(opened, kernel_id)
        blueprint = json.loads(opened.blueprint(kernel.kernel_id))
        trials = opened.trials(kernel.kernel_id)
    if as_json:
        shown = [{"run_id": t.run_id, "task": t.report.task, "report": asdict(t.report)} for t in trials]
        print_json({"kernel": kernel.to_json(), "blueprint": blueprint, "trials": shown})
        return
    facts = {
        "kernel": kernel.kernel_id,
        "name": kernel.name,
        "title": blueprint.get("title", ""),
        "when": blueprint.get("when", ""),
        "paper": blueprint.get("paper", ""),
        "for": str(kernel.slot),
        "tags": " ".join(kernel.tags),
        "status": kernel.status,
        "score": f"{kernel.performance_score:.3f}",
        "parameters": f"{kernel.parameters:,}",
        "latency": f"{kernel.latency_ms:.3f} ms, {kernel.latency_ratio:.2f} times the default transform",
        "compiled": f"{kernel.created_at} in {kernel.compilation_time:.2f} s",
        "device": f"{kernel.device}, {kernel.dtype}",
        "size": f"{kernel.program_bytes:,} bytes of {kernel.target}, {kernel.weights_bytes:,} of weights",
        "blueprint": kernel.blueprint_id,
        "author": kernel.author,
        "from kernel": kernel.parent_kernel,
        "from blueprint": kernel.parent_blueprint,
        "from run": ", ".join(filter(None, (kernel.run_id, kernel.decision))),
        "program": kernel.program_digest,
        "weights": kernel.weights_digest,
    }
    rows = table(("", ""))
    rows.show_header = False
    for fact, value in facts.items():
        if value:
            rows.add_row(fact, str(value))
    latest = f", the latest {TRIALS} of them" if len(trials) > TRIALS else ""
    print_lines(rows, "", f"{counted(len(trials), 'trial')}{latest}" if trials else "No trials yet.")
    if trials:
        results = table(("run", "layer", "verdict", "gain", "error"), right=("gain", "error"))
        for trial in trials[-TRIALS:]:
            report = trial.report
            place = f"{report.layer} seed {report.seed_idx}"
            results.add_row(
                trial.run_id, place, report.verdict, f"{report.gain:+.4f}", f"{report.gain_error:.4f}"
            )
        print_lines(results)


@app.command("rm", epilog="Example: esper kernels rm kernel_13c6 --yes")
def remove_kernels(
    kernel_ids: KernelIds = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove kernels from the library. Their trials stay on record."""
    ids, overrides = split_overrides(kernel_ids)
    with library(overrides) as opened:
        kernels = [resolve(opened, kernel_id) for kernel_id in ids]
        if not kernels:
            raise ConfigError("no kernel to remove was named", hint="list them with: esper kernels ls")
        if not yes and not _agreed(kernels):
            print_lines("Nothing was removed.")
            return
        for kernel in kernels:
            opened.remove(kernel.kernel_id)
            print_lines(f"removed {kernel.kernel_id} ({kernel.name} for {kernel.slot})")


def _agreed(kernels: Sequence[KernelMetadata]) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("removing kernels asks first, and there is no terminal to ask", hint="add --yes")
    for kernel in kernels:
        print_lines(f"{kernel.kernel_id}  {kernel.name} for {kernel.slot}")
    return typer.confirm("Remove these?" if len(kernels) > 1 else "Remove it?")


@app.command("verify", epilog="Example: esper kernels verify --all")
def verify_kernels(
    kernel_ids: KernelIds = None,
    all_: Annotated[bool, typer.Option("--all", help="Verify every kernel.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read kernels from the store itself and hold them against their digests."""
    from esper.urza import KernelQuery

    ids, overrides = split_overrides(kernel_ids)
    if bool(ids) == all_:
        raise ConfigError("verify takes kernel ids, or --all", hint="esper kernels verify --all")
    found: dict[str, str | None] = {}
    with library(overrides) as opened, counting("verified") as one_more:
        named = [resolve(opened, kernel_id) for kernel_id in ids]
        try:
            for kernel in in_pages(opened, KernelQuery(sort="name")) if all_ else named:
                try:
                    opened.verify(kernel.kernel_id)
                    found[kernel.kernel_id] = None
                except CorruptKernel as error:
                    found[kernel.kernel_id] = error.message
                one_more()
        except KeyboardInterrupt:
            _tell_verified(found, stderr=as_json)
            print_lines("stopped before the end", stderr=True)
            raise
    if as_json:
        print_json([{"kernel_id": i, "intact": r is None, "reason": r} for i, r in found.items()])
    else:
        _tell_verified(found)
    if any(reason is not None for reason in found.values()):
        raise typer.Exit(CorruptKernel.exit_code)


def _tell_verified(found: Mapping[str, str | None], *, stderr: bool = False) -> None:
    corrupt = {kernel_id: reason for kernel_id, reason in found.items() if reason is not None}
    for kernel_id, reason in corrupt.items():
        print_lines(f"{reason}; compile it again after: esper kernels rm {kernel_id}", stderr=stderr)
    verb = "is" if len(found) == 1 else "are"
    print_lines(
        f"{len(found) - len(corrupt)} of {counted(len(found), 'kernel')} {verb} intact", stderr=stderr
    )


def resolve(opened: KernelLibrary, kernel_id: str) -> KernelMetadata:
    """The one kernel whose id is ``kernel_id`` or begins with it; the prefix ``kernel_`` may be left out."""
    from esper.urza import KernelQuery

    if opened.contains(kernel_id):
        return opened.get(kernel_id)
    few = KernelQuery(id_prefix=kernel_id, sort="id", limit=4)
    matches = opened.query(few) if kernel_id else []
    if len(matches) > 1:
        number = f"{len(matches)}" if len(matches) < 4 else "more than 3"
        raise LibraryError(
            f"{kernel_id!r} is the start of {number} kernels' ids",
            hint=f"give more of it: {', '.join(match.kernel_id for match in matches[:3])}",
        )
    if not matches:
        raise KernelNotFound(kernel_id)
    return matches[0]


def split_overrides(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Arguments as names, each once, and overrides: the latter hold ``=``."""
    given = list(dict.fromkeys(words or ()))
    return [word for word in given if "=" not in word], [word for word in given if "=" in word]
