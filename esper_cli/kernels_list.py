"""``esper kernels ls``: which kernels there are, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from esper.errors import ConfigError
from esper.messages import Layout
from esper_cli.kernels import PREFIX, AsJson, Overrides, app, library, pages
from esper_cli.rows import LongTable
from esper_cli.terminal import count, is_wide, print_json_list, print_lines

if TYPE_CHECKING:
    from esper.urza import KernelLibrary, Page

__all__ = ["app"]  # of kernels.py, with the command of this file

LAYOUTS = ("features", "tokens", "channels")
STATUSES = ("validated", "retired")
LIMIT = 100
"""How many are listed where nothing is said."""

Many = list[str] | None


def _sort_keys() -> list[str]:
    from esper.urza import SORT_KEYS

    return list(SORT_KEYS)


@app.command("ls", epilog="Example: esper kernels ls --tag linear --input 128 --sort latency")
def list_kernels(
    tag: Annotated[Many, typer.Option(help="Only kernels with this tag; repeated: with all.")] = None,
    any_tag: Annotated[Many, typer.Option(help="Only those with one of these tags; repeated.")] = None,
    no_tag: Annotated[Many, typer.Option(help="Only kernels without this tag.")] = None,
    input_: Annotated[int | None, typer.Option("--input", help="Only this many input features.")] = None,
    output: Annotated[int | None, typer.Option(help="Only this many output features.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="features, tokens or channels.", autocompletion=lambda: list(LAYOUTS))
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="validated or retired.", autocompletion=lambda: list(STATUSES))
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only names that contain this.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, ...")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    author: Annotated[str | None, typer.Option(help="Only those that this author made.")] = None,
    blueprint: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this blueprint.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only those made since: 2026-11-23, or with a time."),
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Only those made before.")] = None,
    sort: Annotated[
        str, typer.Option(help="rank, name, created, score, latency, ...", autocompletion=_sort_keys)
    ] = "rank",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = LIMIT,
    all_: Annotated[bool, typer.Option("--all", help="All of them, however many.")] = False,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier list with this sort ended.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List kernels, the best first, in a wide terminal with the chance of being kept and the trials kept."""
    from esper.urza import KernelQuery

    query = KernelQuery(
        tags=tuple(tag or ()),
        any_tags=tuple(any_tag or ()),
        no_tags=tuple(no_tag or ()),
        input=input_,
        output=output,
        layout=cast("Layout | None", _one_of("--layout", layout, LAYOUTS)),
        status=cast(Any, _one_of("--status", status, STATUSES)),
        name=name,
        dtype=dtype,
        device=device,
        author=author,
        blueprint=blueprint,
        created_after=since,
        created_before=before,
        sort=sort,
        limit=None if all_ else limit,
        after=after,
    )
    beyond: str | None = None

    def listed(opened: KernelLibrary) -> Iterator[Page]:
        nonlocal beyond
        for page in pages(opened, query):
            beyond = page.next
            yield page

    with library(overrides or ()) as opened:
        if as_json:
            print_json_list(kernel for page in listed(opened) for kernel in _as_json(page))
        elif not _print_table(listed(opened)):
            empty = not opened.query(KernelQuery(limit=1))
            hint = "The library has no kernels yet. Compile some with: esper compile blueprints/"
            print_lines(hint if empty else "No kernel matches.")
    if beyond is not None:
        print_lines(f"There are more; go on with --after {beyond}, or list --all", stderr=True)


def _as_json(page: Page) -> Iterator[dict[str, Any]]:
    for kernel, standing in zip(page.kernels, page.standings, strict=True):
        yield kernel.to_json() | {"standing": asdict(standing)}


def _print_table(parts: Iterable[Page]) -> bool:
    """Print each page as soon as it is read; whether there was a kernel."""
    wide = is_wide()
    measured = ("rank", "kept", "latency") if wide else ()
    columns = ("kernel", "name", "for", "params", "score", *measured, "tags")
    listed = LongTable(columns, right=columns[3:-1], whole=columns[:3])
    some = False
    for page in parts:
        if page.kernels:
            some = True
            listed.print(list(_rows(page, wide)))
    return some


def _rows(page: Page, wide: bool) -> Iterator[tuple[str, ...]]:
    for kernel, standing in zip(page.kernels, page.standings, strict=True):
        marked = "" if kernel.status == "validated" else f" ({kernel.status})"
        measured = (
            f"{standing.score:.2f} ± {standing.error:.2f}",
            f"{standing.kept}/{standing.trials}",
            f"{kernel.latency_ms:.2f} ms",
        )
        yield (
            # In 80 columns there is room for what tells ids apart; every command takes that alone.
            kernel.kernel_id if wide else kernel.kernel_id.removeprefix(PREFIX),
            kernel.name + marked,
            str(kernel.slot),
            count(kernel.parameters),
            f"{kernel.performance_score:.2f}",
            *(measured if wide else ()),
            " ".join(tag for tag in kernel.tags if tag != "validated"),
        )


def _one_of(flag: str, value: str | None, allowed: Sequence[str]) -> str | None:
    if value is not None and value not in allowed:
        raise ConfigError(f"{flag} takes {', '.join(allowed)}, not {value!r}")
    return value
