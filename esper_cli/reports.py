"""``esper reports``: what the trials of kernels showed, whichever run they were in."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from esper.errors import ConfigError, RunError
from esper_cli.kernels import AsJson, Overrides, library
from esper_cli.terminal import is_wide, print_json, print_lines, table

if TYPE_CHECKING:
    from esper.urza import StoredReport

app = typer.Typer(no_args_is_help=True, help="List and show the reports of finished trials.")

LIMIT = 50
"""How many are listed where nothing is said."""
VERDICTS = ("kept", "culled", "failed")
NONE_YET = (
    "No trial has finished yet. Start a run that grows with: esper train +experiment=resnet tamiyo=eager"
)


@app.command("ls", epilog="Example: esper reports ls --kind conv2d --verdict kept")
def list_reports(
    kind: Annotated[str | None, typer.Option(help="Only in layers of this kind: conv2d, linear, ...")] = None,
    blueprint: Annotated[
        str | None,
        typer.Option(metavar="ID|NAME", help="Only of this blueprint: its name, or its id's start."),
    ] = None,
    verdict: Annotated[
        str | None, typer.Option(help="kept, culled or failed.", autocompletion=lambda: list(VERDICTS))
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Only of runs whose id starts so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = LIMIT,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on where an earlier list ended.")
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """List the reports of finished trials, the newest first."""
    from esper.urza import ReportQuery

    if verdict is not None and verdict not in VERDICTS:
        raise ConfigError(f"--verdict takes {', '.join(VERDICTS)}, not {verdict!r}")
    query = ReportQuery(kind, blueprint, cast(Any, verdict), run, limit, after)
    with library(overrides or ()) as opened:
        page = opened.reports(query)
        empty = not page.reports and not opened.reports(ReportQuery(limit=1)).reports
    if as_json:
        print_json([_as_data(stored) for stored in page.reports])
    elif empty:
        print_lines(NONE_YET)
    elif not page.reports:
        print_lines("No report matches.")
    else:
        _print_table(page.reports)
    if page.next is not None:
        print_lines(f"There are more; go on with --after {page.next}", stderr=True)


@app.command("show", epilog="Example: esper reports show 12")
def show_report(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="A report's number, from the list.")],
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Show one report: where, what, what was expected and what came of it."""
    from esper.urza import ReportQuery

    with library(overrides or ()) as opened:
        found = opened.reports(ReportQuery(id=number)).reports
    if not found:
        raise RunError(f"there is no report {number}", hint="list them with: esper reports ls")
    if as_json:
        print_json(_as_data(found[0]))
        return
    rows = table(("", ""))
    rows.show_header = False
    for fact, value in _facts(found[0]).items():
        rows.add_row(fact, value)
    print_lines(rows)


def _facts(stored: StoredReport) -> dict[str, str]:
    """What is known of a report, in words; what was not recorded is left out."""
    report = stored.report
    place = f"{report.layer} seed {report.seed_idx}, {report.site}, {report.layer_kind} {report.slot}"
    if report.depth is not None and report.layers is not None:
        place += f", layer {report.depth + 1} of {report.layers}"
    signals = {
        "gradient norm": report.gradient_norm,
        "activation variance": report.activation_variance,
        "health": report.health,
    }
    known = ", ".join(f"{name} {value:.3g}" for name, value in signals.items() if value is not None)
    cost = [f"{report.parameters:,} parameters"]
    cost += [f"{report.latency_ms:.3f} ms a pass"] if report.latency_ms is not None else []
    cost += [f"{report.seconds:.1f} s on trial"] if report.seconds is not None else []
    realised = report.gain / report.loss_before if report.loss_before else math.nan
    return {
        "run": stored.run_id,
        "task": report.task,
        "place": place,
        "kernel": f"{report.kernel_id} {stored.name}".rstrip(),
        "blueprint": report.blueprint_id,
        "epochs": f"{report.started_epoch + 1} to {report.ended_epoch + 1}",
        **({"at the start": known} if known else {}),
        "impact": f"{100 * report.expected_impact:.2f} % expected, {100 * realised:.2f} % measured",
        "gain": f"{report.gain:.4f} ± {report.gain_error:.4f} nats",
        "held-out loss": f"{report.loss_before:.4f} -> {report.loss_after:.4f}",
        "accuracy": f"{100 * report.accuracy_before:.1f} % -> {100 * report.accuracy_after:.1f} %",
        "cost": ", ".join(cost),
        "verdict": f"{report.verdict}: {report.reason}",
    }


def _print_table(reports: tuple[StoredReport, ...]) -> None:
    wide = is_wide()
    more = ("run", "task", "params") if wide else ()
    rows = table(
        ("no", "verdict", "gain", "blueprint", "layer", "for", *more),
        right=("no", "gain", "params"),
        whole=("verdict", "blueprint", "for"),
    )
    for stored in reports:
        report = stored.report
        rows.add_row(
            str(stored.id),
            report.verdict,
            f"{report.gain:+.4f}",
            stored.name or report.blueprint_id.removeprefix("blueprint_"),
            f"{report.layer} seed {report.seed_idx}",
            str(report.slot),
            *((stored.run_id, report.task, f"{report.parameters:,}") if wide else ()),
        )
    print_lines(rows)


def _as_data(stored: StoredReport) -> dict[str, Any]:
    """Plain data; what is no finite number becomes null."""
    report = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(stored.report).items()
        if name not in ("confidence", "tags")  # which the library does not have
    }
    return {"id": stored.id, "run_id": stored.run_id, "name": stored.name, **report}
