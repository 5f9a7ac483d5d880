"""``esper kernels``: tags, garbage, harvesting from runs, and exchange with other libraries."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper.errors import ConfigError, CorruptKernel
from esper.messages import KernelMetadata
from esper_cli.kernels import (
    AsJson,
    KernelIds,
    Overrides,
    counting,
    in_pages,
    library,
    resolve,
    split_overrides,
)
from esper_cli.kernels_list import app
from esper_cli.runs import RunId, open_store
from esper_cli.terminal import counted, print_json, print_lines

if TYPE_CHECKING:
    from esper.urza import KernelLibrary

__all__ = ["app"]  # of kernels.py, with the commands of this file

TAG = re.compile(r"[^\x00-\x20\x7f-\xa0]{1,100}")
"""As the API takes them: lists have spaces between tags, and a line a kernel."""

Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be repeated.")]
Selected = Annotated[
    list[str] | None, typer.Option("--tag", help="Only kernels with this tag; repeated: with all.")
]
OtherKeys = Annotated[
    Path | None,
    typer.Option(
        "--keys", metavar="FILE", help="The other library's keys, if they are not those of this one."
    ),
]


@app.command("tag", epilog="Example: esper kernels tag kernel_13c6 kernel_e0fe --tag good")
def tag_kernels(ids: KernelIds = None, tag: Tags = None) -> None:
    """Give tags to kernels."""
    for name in tag or ():
        if not TAG.fullmatch(name):
            raise ConfigError(f"a tag has 1 to 100 characters, none of them a space, unlike {name[:20]!r}")
    _retag(ids, tag, lambda tags: dict.fromkeys([*tags, *(tag or ())]))


@app.command("untag", epilog="Example: esper kernels untag kernel_13c6 --tag good")
def untag_kernels(ids: KernelIds = None, tag: Tags = None) -> None:
    """Take tags from kernels."""
    _retag(ids, tag, lambda tags: [name for name in tags if name not in (tag or ())])


def _retag(
    ids: Sequence[str] | None, named: Sequence[str] | None, change: Callable[[Sequence[str]], Iterable[str]]
) -> None:
    if not named:
        raise ConfigError("no tag was named", hint="name one with: --tag TAG")
    names, overrides = split_overrides(ids)
    with library(overrides) as opened:
        for kernel in _named(opened, names):
            tags = tuple(change(kernel.tags))
            opened.set_tags(kernel.kernel_id, tags)
            print_lines(f"{kernel.kernel_id}  {' '.join(tags)}")


@app.command("retire", epilog="Example: esper kernels retire kernel_13c6")
def retire_kernels(
    ids: KernelIds = None,
    undo: Annotated[bool, typer.Option("--undo", help="Bring them back.")] = False,
) -> None:
    """Offer kernels to no seed any more; they stay in the library."""
    names, overrides = split_overrides(ids)
    with library(overrides) as opened:
        for kernel in _named(opened, names):
            opened.set_status(kernel.kernel_id, "validated" if undo else "retired")
            print_lines(f"{'brought back' if undo else 'retired'} {_described(kernel)}")


@app.command("gc", epilog="Example: esper kernels gc --retired-days 30 --dry-run")
def collect_garbage(
    retired_days: Annotated[
        float | None,
        typer.Option(min=0, help="Also retired kernels that are older than this and that no trial kept."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Take out of the library what nothing refers to."""
    with library(overrides or ()) as opened:
        found = opened.gc(retired_days=retired_days, dry_run=dry_run)
    if as_json:
        print_json({"kernels": found.kernels, "blobs": found.blobs, "bytes": found.bytes, "dry_run": dry_run})
        return
    for kernel_id in found.kernels:
        print_lines(f"{'would remove' if dry_run else 'removed'} {kernel_id}")
    would = "would go" if dry_run else "went"
    kernels, blobs = counted(len(found.kernels), "kernel"), counted(len(found.blobs), "blob")
    print_lines(f"{kernels} and {blobs} of {counted(found.bytes, 'byte')} {would}")


@app.command("harvest", epilog="Example: esper kernels harvest latest")
def harvest_run(run: RunId, as_json: AsJson = False, overrides: Overrides = None) -> None:
    """Store the kernels that a run kept, with the weights that they learned, as a warm start for others."""
    given = list(overrides or ())
    view = open_store(given).open(run)

    from esper.assembly.harvest import harvest  # takes seconds to import
    from esper_cli.config import compose_from

    cfg = compose_from(view.folder / "config.yaml", [])

    def tell(kernel: KernelMetadata, new: bool) -> None:
        if not as_json:
            known = "" if new else ", harvested before"
            print_lines(f"{_described(kernel)}, from {kernel.parent_kernel} at {kernel.decision}{known}")

    with library(given) as opened:
        found = harvest(cfg, view.folder, opened, tell)
    if as_json:
        print_json([kernel.to_json() for kernel in found])


@app.command("push", epilog="Example: esper kernels push --to sqlite:///team/kernels.db --tag good")
def push_kernels(
    to: Annotated[str, typer.Option(metavar="URL", help="The library to copy to.")],
    ids: KernelIds = None,
    tag: Selected = None,
    keys: OtherKeys = None,
    as_json: AsJson = False,
) -> None:
    """Copy kernels to another library: those named, those of a tag, or all."""
    names, overrides = split_overrides(ids)
    with library(overrides) as here, library(_elsewhere(overrides, to, keys)) as there:
        _exchange(here, there, names, tag, as_json)


@app.command("pull", epilog="Example: esper kernels pull --from sqlite:///team/kernels.db --tag good")
def pull_kernels(
    source: Annotated[str, typer.Option("--from", metavar="URL", help="The library to copy from.")],
    ids: KernelIds = None,
    tag: Selected = None,
    keys: OtherKeys = None,
    as_json: AsJson = False,
) -> None:
    """Copy kernels from another library: those named, those of a tag, or all."""
    names, overrides = split_overrides(ids)
    with library(overrides) as here, library(_elsewhere(overrides, source, keys), make=False) as there:
        _exchange(there, here, names, tag, as_json)


def _elsewhere(overrides: Sequence[str], url: str, keys: Path | None) -> list[str]:
    from esper.assembly.configured import quoted

    other = [f"urza.url={quoted(url)}"]
    if keys is not None:
        if not keys.is_file():
            raise ConfigError(
                f"--keys: there is no file {keys}", hint="give a copy of the other library's keys"
            )
        other += ["security=file", f"security.path={quoted(str(keys))}"]
    return [*overrides, *other]


def _exchange(
    source: KernelLibrary,
    target: KernelLibrary,
    names: Sequence[str],
    tags: Sequence[str] | None,
    as_json: bool,
) -> None:
    from esper.assembly.exchange import copy_kernels
    from esper.urza import KernelQuery

    if names and tags:
        raise ConfigError("give kernels' ids or --tag, not both")
    everything = in_pages(source, KernelQuery(tags=tuple(tags or ()), sort="created"))
    kernels = [resolve(source, name) for name in names] if names else everything
    told: list[dict[str, Any]] = []

    def tell(kernel: KernelMetadata, new: bool, corrupt: CorruptKernel | None) -> None:
        refused = None if corrupt is None else corrupt.message
        told.append({"kernel_id": kernel.kernel_id, "copied": new, "refused": refused})
        one_more()
        if corrupt is not None and not as_json:
            print_lines(f"refused: {corrupt}", stderr=True)
        elif new and not as_json:
            print_lines(f"copied {_described(kernel)}")

    # In a terminal the lines themselves show how it goes.
    with counting("gone through", shown=as_json or not sys.stdout.isatty()) as one_more:
        try:
            copy_kernels(source, target, kernels, tell)
        except KeyboardInterrupt:
            hint = "what is copied is whole, and the same command goes on"
            print_lines(f"stopped: {_copied(told)}; {hint}", stderr=True)
            raise
    if as_json:
        print_json(told)
    else:
        print_lines(_copied(told))
    if any(each["refused"] for each in told):
        raise typer.Exit(CorruptKernel.exit_code)


def _copied(told: Sequence[dict[str, Any]]) -> str:
    copied, refused = (sum(bool(each[how]) for each in told) for how in ("copied", "refused"))
    there = f"{counted(copied, 'kernel')} copied, {len(told) - copied - refused} already there"
    return f"{there}, {refused} refused" if refused else there


def _named(opened: KernelLibrary, names: Sequence[str]) -> list[KernelMetadata]:
    if not names:
        raise ConfigError("no kernel was named", hint="list them with: esper kernels ls")
    return [resolve(opened, name) for name in names]


def _described(kernel: KernelMetadata) -> str:
    return f"{kernel.kernel_id} ({kernel.name} for {kernel.slot})"
