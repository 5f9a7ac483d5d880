"""``esper karn``: invent kernels from what trials showed, and see what became of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from esper.errors import LibraryError
from esper.messages import INVENTED, InventionRecord
from esper_cli.compile import parse_shape
from esper_cli.importing import importing_pytorch
from esper_cli.kernels import AsJson, Overrides, in_pages, library
from esper_cli.keys import tell_key_made
from esper_cli.terminal import console, counted, is_wide, print_json, print_lines, table

if TYPE_CHECKING:
    from esper.messages import FieldReport, KernelMetadata
    from esper.urza import KernelLibrary

app = typer.Typer(no_args_is_help=True, help="Invent kernels from the reports of trials, and see their fate.")

NOWHERE = (
    "No trial has finished yet, so nothing says where kernels are wanted. Name a place with "
    "--slot channels:16:16, or train with: esper train +experiment=resnet karn=on"
)
NONE_YET = "Nothing was invented yet. Invent from finished trials with: esper karn run --budget 50"
Id = Annotated[
    str, typer.Argument(metavar="BLUEPRINT", help="An invented blueprint: its name, or its id's start.")
]


@app.command("run", epilog="Example: esper karn run --budget 50 --workers 2")
def invent(
    budget: Annotated[int, typer.Option(min=1, max=10_000, help="How many inventions at most.")] = 50,
    slot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYOUT:IN:OUT[:STRIDE]",
            help="Invent for this slot; repeated: for each. Else for those of trials.",
        ),
    ] = None,
    reports: Annotated[
        str,
        typer.Option(metavar="RUN", help="Learn only from runs whose id starts so; from all unless given."),
    ] = "",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Processes that compile at once; short for tezzeret.workers=N."
        ),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Invent kernels from finished trials, compile them and store them with what they were made of.

    Nothing is compiled a second time for a slot. What keeps losing is retired.
    """
    with importing_pytorch():
        from esper.assembly.inventing import Inventing, build_inventor, places_in
        from esper.assembly.kernels import build_pipeline
        from esper.assembly.storage import build_library
        from esper.assembly.workers import build_workers
        from esper.karn.invention import Place
        from esper.tezzeret.alerts import FailureAlert
        from esper_cli.config import compose

    given = list(overrides or ())
    cfg = compose([*given, *([f"tezzeret.workers={workers}"] if workers is not None else [])])
    named = [Place(parse_shape(text, "--slot")) for text in slot or ()]
    made: list[InventionRecord] = []
    pipeline = build_pipeline(cfg)
    with (
        build_library(cfg, on_key_made=tell_key_made) as opened,
        build_workers(cfg, _tell) or nullcontext() as pool,
        _progress(budget) as advance,
    ):
        inventing = Inventing(
            opened,
            pipeline,
            build_inventor(cfg),
            [Path(path) for path in cfg.karn.paths],
            workers=pool,
            on_failure=FailureAlert(cfg.tezzeret.get("alert_url"), _tell),
            reports_of=reports,
        )
        places = named or places_in(inventing.reports())

        def tell(record: InventionRecord) -> None:
            made.append(record)
            advance()

        try:
            inventing.invent(places, budget, tell)
        except KeyboardInterrupt:
            _tell(f"stopped: {counted(len(made), 'invention')} stored; the same command goes on")
            raise
        retired = inventing.retire()
    if as_json:
        print_json({"inventions": [asdict(record) for record in made], "retired": retired})
    elif not places:
        print_lines(NOWHERE)
    else:
        _print_made(made, retired)


@app.command("ls", epilog="Example: esper karn ls")
def list_inventions(as_json: AsJson = False, overrides: Overrides = None) -> None:
    """List what was invented, the newest first: of what, and what became of it."""
    with library(overrides or ()) as opened:
        found = list(_with_fates(opened))[::-1]
    if as_json:
        print_json([asdict(record) | facts for record, facts in found])
        return
    if not found:
        print_lines(NONE_YET)
        return
    wide = is_wide()
    rows = table(
        ("kernel", "name", "for", "predicted", "measured", "fate", *(("parents", "reason") if wide else ())),
        right=("predicted", "measured"),
        whole=("kernel", "for"),
    )
    for record, facts in found:
        rows.add_row(
            (record.kernel_id or "").removeprefix("" if wide else "kernel_"),
            record.blueprint_name,
            str(record.slot),
            *(_gain(value) for value in (record.predicted_impact, facts["gain"])),
            facts["fate"],
            *((" ".join(record.parents), record.reason) if wide else ()),
        )
    print_lines(rows)


@app.command("retire", epilog="Example: esper karn retire blueprint_13c6")
def retire(blueprint: Id, overrides: Overrides = None) -> None:
    """Offer an invented blueprint's kernels to no seed any more; they stay in the library."""
    from esper.assembly.inventing import LOSING, RESTORED

    def change(opened: KernelLibrary, kernel: KernelMetadata) -> None:
        opened.set_status(kernel.kernel_id, "retired")
        opened.set_tags(kernel.kernel_id, [tag for tag in kernel.tags if tag not in (LOSING, RESTORED)])

    _change(blueprint, overrides or (), "retired", change)


@app.command("restore", epilog="Example: esper karn restore blueprint_13c6")
def restore(blueprint: Id, overrides: Overrides = None) -> None:
    """Bring an invented blueprint back, whether it was retired by hand or because it kept losing."""
    from esper.assembly.inventing import LOSING, RESTORED

    def change(opened: KernelLibrary, kernel: KernelMetadata) -> None:
        opened.set_status(kernel.kernel_id, "validated")
        opened.set_tags(kernel.kernel_id, [*(tag for tag in kernel.tags if tag != LOSING), RESTORED])

    _change(blueprint, overrides or (), "brought back", change)


def _change(
    blueprint: str,
    overrides: Sequence[str],
    words: str,
    change: Callable[[KernelLibrary, KernelMetadata], None],
) -> None:
    from esper.urza import KernelQuery

    with library(overrides) as opened:
        kernels = [
            kernel
            for kernel in in_pages(opened, KernelQuery(tags=(INVENTED,), sort="id"))
            if kernel.name == blueprint
            or kernel.blueprint_id.startswith((blueprint, f"blueprint_{blueprint}"))
        ]
        ids = {kernel.blueprint_id for kernel in kernels}
        if len(ids) > 1:
            raise LibraryError(
                f"{blueprint!r} is the start of {len(ids)} invented blueprints", hint="give more of the id"
            )
        if not kernels:
            raise LibraryError(
                f"no invented blueprint is called {blueprint!r}", hint="list them with: esper karn ls"
            )
        for kernel in kernels:
            change(opened, kernel)
            print_lines(f"{words} {kernel.kernel_id} ({kernel.name} for {kernel.slot})")


def _with_fates(opened: KernelLibrary) -> Iterator[tuple[InventionRecord, dict[str, Any]]]:
    """Every invention, oldest first, with its ``fate`` in words and the mean ``gain`` of its trials."""
    from esper.urza import KernelQuery

    kernels = {kernel.kernel_id: kernel for kernel in in_pages(opened, KernelQuery(sort="id"))}
    trials: dict[str, list[FieldReport]] = {}
    for trial in opened.trials():
        trials.setdefault(trial.report.kernel_id, []).append(trial.report)
    for record in opened.inventions():
        own = trials.get(record.kernel_id or "", [])
        gain = sum(trial.gain for trial in own) / len(own) if own else None
        yield record, {"gain": gain, "fate": _fate(record, own, kernels.get(record.kernel_id or ""))}


def _fate(record: InventionRecord, trials: Sequence[FieldReport], kernel: KernelMetadata | None) -> str:
    if record.failure is not None:
        return f"not compiled: {record.failure}"
    kept = sum(trial.verdict == "kept" for trial in trials)
    words = f"kept in {kept} of {counted(len(trials), 'trial')}" if trials else "untried"
    if kernel is None:
        return f"{words}, removed"
    return words if kernel.status == "validated" else f"{words}, {kernel.status}"


def _print_made(made: Sequence[InventionRecord], retired: dict[str, str]) -> None:
    rows = table(("kernel", "name", "for", "predicted", "why"), right=("predicted",), whole=("kernel", "for"))
    for record in made:
        became = record.reason if record.kernel_id else f"failed in {record.failure}"
        kernel = (record.kernel_id or "").removeprefix("" if is_wide() else "kernel_")
        rows.add_row(kernel, record.blueprint_name, str(record.slot), _gain(record.predicted_impact), became)
    if made:
        print_lines(rows)
    for kernel_id, why in retired.items():
        print_lines(f"retired {kernel_id}: {why}")
    stored = sum(record.kernel_id is not None for record in made)
    print_lines(f"{stored} invented, {len(made) - stored} failed to compile, {len(retired)} retired")


def _gain(nats: float | None) -> str:
    return "" if nats is None else f"{nats:+.4f}"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object]]:
    """What to call after each invention; shown where somebody looks."""
    out = console(stderr=True)
    columns = (TextColumn("inventing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _tell(text: str) -> None:
    print_lines(text, stderr=True)
