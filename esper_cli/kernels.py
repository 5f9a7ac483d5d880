"""``esper kernels``: list, show, remove and verify the kernels of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from esper.errors import ConfigError, CorruptKernel, KernelNotFound, LibraryError
from esper.messages import KernelMetadata, Layout
from esper_cli.completion import complete_names, complete_overrides
from esper_cli.keys import tell_key_made
from esper_cli.terminal import count, is_wide, print_json, print_lines, table

if TYPE_CHECKING:
    from esper.urza import KernelLibrary

app = typer.Typer(
    no_args_is_help=True, help="List, show, tag, exchange, harvest, verify and remove compiled kernels."
)

LAYOUTS = ("features", "tokens", "channels")
STATUSES = ("validated", "retired")


@contextmanager
def library(overrides: Sequence[str] = ()) -> Iterator[KernelLibrary]:
    """The library of the configuration, closed at the end."""
    from esper.assembly.storage import build_library
    from esper_cli.config import compose

    opened = build_library(compose(list(overrides)), on_key_made=tell_key_made)
    try:
        yield opened
    finally:
        opened.close()


def kernel_ids() -> list[str]:
    """The ids of all kernels, for completion."""
    from esper.urza import KernelQuery

    with library() as opened:
        return [kernel.kernel_id for kernel in opened.query(KernelQuery())]


def _sort_keys() -> list[str]:
    from esper.urza import SORT_KEYS

    return list(SORT_KEYS)


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
    typer.Argument(
        metavar="ID", help="A kernel's id, or the start of one.", autocompletion=complete_names(kernel_ids)
    ),
]
KernelIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID|KEY=VALUE",
        help="Ids, or the starts of ids; overrides of the configuration.",
        autocompletion=complete_names(kernel_ids),
    ),
]


@app.command("ls", epilog="Example: esper kernels ls --tag linear --input 128 --sort latency")
def list_kernels(
    tag: Annotated[
        list[str] | None, typer.Option(help="Only kernels with this tag; repeated: with all.")
    ] = None,
    input_: Annotated[int | None, typer.Option("--input", help="Only this many input features.")] = None,
    output: Annotated[int | None, typer.Option(help="Only this many output features.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="features, tokens or channels.", autocompletion=lambda: list(LAYOUTS))
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="validated or retired.", autocompletion=lambda: list(STATUSES))
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    sort: Annotated[
        str, typer.Option(help="rank, name, created, score, latency, ...", autocompletion=_sort_keys)
    ] = "rank",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List kernels, the best first."""
    from esper.urza import KernelQuery

    query = KernelQuery(
        tags=tuple(tag or ()),
        input=input_,
        output=output,
        layout=cast("Layout | None", _one_of("--layout", layout, LAYOUTS)),
        status=cast(Any, _one_of("--status", status, STATUSES)),
        name=name,
        sort=sort,
        limit=limit,
    )
    with library(overrides or ()) as opened:
        kernels = opened.query(query)
        narrowed = query != KernelQuery(sort=sort)
        empty = not kernels and not opened.query(KernelQuery(limit=1))
    if as_json:
        print_json([kernel.to_json() for kernel in kernels])
    elif empty:
        print_lines("The library has no kernels yet. Compile some with: esper compile blueprints/")
    elif not kernels and narrowed:
        print_lines("No kernel matches.")
    else:
        _print_table(kernels)


def _print_table(kernels: Sequence[KernelMetadata]) -> None:
    wide = is_wide()
    rows = table(
        ("kernel", "name", "for", "params", "score", *(("latency",) if wide else ()), "tags"),
        right=("params", "score", "latency"),
        whole=("kernel", "name", "for"),
    )
    for kernel in kernels:
        marked = "" if kernel.status == "validated" else f" ({kernel.status})"
        rows.add_row(
            # In 80 columns there is room for what tells ids apart; every command takes that alone.
            kernel.kernel_id if wide else kernel.kernel_id.removeprefix("kernel_"),
            kernel.name + marked,
            str(kernel.slot),
            count(kernel.parameters),
            f"{kernel.performance_score:.2f}",
            *((f"{kernel.latency_ms:.2f} ms",) if wide else ()),
            " ".join(tag for tag in kernel.tags if tag != "validated"),
        )
    print_lines(rows)


@app.command("show", epilog="Example: esper kernels show kernel_13c6")
def show_kernel(kernel_id: KernelId, as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Show all that is known of a kernel: its numbers, its trials, its blueprint."""
    with library(overrides or ()) as opened:
        kernel = resolve(opened, kernel_id)
        blueprint = json.loads(opened.blueprint(kernel.kernel_id))
        trials = opened.trials(kernel.kernel_id)
    if as_json:
        shown = [{"run_id": t.run_id, "task": t.task, "report": asdict(t.report)} for t in trials]
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
    print_lines(rows, "", f"{len(trials)} trials" if trials else "No trials yet.")
    if trials:
        results = table(("run", "layer", "verdict", "gain", "error"), right=("gain", "error"))
        for trial in trials:
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
    with library(overrides) as opened:
        if all_:
            kernels = opened.query(KernelQuery(sort="name"))
        else:
            kernels = [resolve(opened, kernel_id) for kernel_id in ids]
        for kernel in kernels:
            try:
                opened.verify(kernel.kernel_id)
                found[kernel.kernel_id] = None
            except CorruptKernel as error:
                found[kernel.kernel_id] = error.message
    corrupt = {kernel_id: reason for kernel_id, reason in found.items() if reason is not None}
    if as_json:
        print_json([{"kernel_id": i, "intact": r is None, "reason": r} for i, r in found.items()])
    else:
        for kernel_id, reason in corrupt.items():
            print_lines(f"{reason}; compile it again after: esper kernels rm {kernel_id}")
        print_lines(f"{len(found) - len(corrupt)} of {len(found)} kernels are intact")
    if corrupt:
        raise typer.Exit(CorruptKernel.exit_code)


def resolve(opened: KernelLibrary, kernel_id: str) -> KernelMetadata:
    """The one kernel whose id is ``kernel_id`` or begins with it; the prefix ``kernel_`` may be left out."""
    from esper.urza import KernelQuery

    if opened.contains(kernel_id):
        return opened.get(kernel_id)
    kernels = opened.query(KernelQuery(sort="name"))
    starts = (kernel_id, f"kernel_{kernel_id}")
    matches = [kernel for kernel in kernels if kernel_id and kernel.kernel_id.startswith(starts)]
    if len(matches) > 1:
        raise LibraryError(
            f"{kernel_id!r} is the start of {len(matches)} kernels' ids",
            hint=f"give more of it: {', '.join(match.kernel_id for match in matches[:3])}",
        )
    if not matches:
        raise KernelNotFound(kernel_id)
    return matches[0]


def split_overrides(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Arguments as names, each once, and overrides: the latter hold ``=``."""
    given = list(dict.fromkeys(words or ()))
    return [word for word in given if "=" not in word], [word for word in given if "=" in word]


def _one_of(flag: str, value: str | None, allowed: Sequence[str]) -> str | None:
    if value is not None and value not in allowed:
        raise ConfigError(f"{flag} takes {', '.join(allowed)}, not {value!r}")
    return value
