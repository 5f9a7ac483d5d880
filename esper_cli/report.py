"""The end of a run in tables: what each adaptation did, what the network costs, what was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from esper.nissa.run_records import Adaptation
from esper.nissa.runs import RunStore, RunView
from esper_cli.terminal import count, duration, is_wide, percent, print_json, print_lines, table

LONGEST_PLACE = 28
"""Columns that a layer's name gets in a narrow table; the end of a name tells more than its start."""

VERDICT_STYLES = {"kept": "bold green", "culled": "yellow", "failed": "red", "refused": "dim"}


def report_run(root: Path, run_id: str, *, as_json: bool) -> None:
    """Draw the plot of the run ``run_id`` below ``root`` and print its summary on stdout."""
    from esper_cli.plot import plot_run  # Matplotlib takes a second to import

    view = RunStore(root).open(run_id)
    plot_run(view, view.folder / "plot.png")
    if as_json:
        print_json({**(view.summary or {}), "files": [str(path) for path in written(view)]})
        return
    print_lines(f"run {view.run_id}: {view.status}", "")
    print_adaptations(view)
    print_lines("", sizes(view), "")
    print_lines(*(f"wrote {path}" for path in written(view)))
    folder = view.folder / "checkpoints"
    number = len([path for path in folder.glob("step-*") if path.is_dir()])
    if number:
        print_lines(f"{number} checkpoint{'s' if number > 1 else ''} in {folder}")


def print_adaptations(view: RunView) -> None:
    """Print the table of adaptations, or why there is none."""
    if not view.adaptations:
        print_lines("No adaptation: no decision was taken in this run.")
        return
    wide = is_wide()
    rows = table(
        ("epoch", "where, kernel", "verdict", "loss", "accuracy", "reason"),
        right=("epoch", "loss", "accuracy"),
        whole=("where, kernel", "verdict"),
    )
    for alike in grouped(view.adaptations):
        cells = adaptation_cells(alike[0], ", " if wide else "\n")
        if len(alike) > 1:
            layers = dict.fromkeys(str(item.decision.get("target_component", "")) for item in alike)
            cells[:3] = [
                Text(f"{alike[0].epoch + 1}-{alike[-1].epoch + 1}"),
                Text(", ".join(layers)),
                Text(f"{len(alike)} refused", VERDICT_STYLES["refused"]),
            ]
        rows.add_row(*cells)
    print_lines(rows)


def grouped(adaptations: Iterable[Adaptation]) -> Iterator[list[Adaptation]]:
    """Adaptations in their order, alone, but for refusals in a row that have one reason: those together."""
    for performed, alike in groupby(adaptations, lambda item: item.performed or item.reason):
        found = list(alike)
        yield from [[item] for item in found] if performed is True else [found]


def adaptation_cells(adaptation: Adaptation, between: str) -> list[Text]:
    """One row: two facts that belong together are put ``between`` each other."""
    decision, trial = adaptation.decision, adaptation.trial
    seed = decision.get("parameters", {}).get("seed_idx")
    place = str(decision.get("target_component", "")) + (f" seed {seed}" if seed is not None else "")
    if between == "\n" and len(place) > LONGEST_PLACE:
        place = "…" + place[-LONGEST_PLACE + 1 :]
    where = [place, *([adaptation.kernel_id] if adaptation.kernel_id else [])]
    verdict = trial.verdict if trial else {"grafted": "on trial"}.get(adaptation.status, adaptation.status)
    why = str(decision.get("reason", ""))
    reason = trial.reason if trial else why if adaptation.performed else adaptation.reason or why
    arrow = " -> " if between != "\n" else "\n"
    loss = arrow.join((f"{trial.loss_before:.4f}", f"{trial.loss_after:.4f}")) if trial else ""
    accuracy = arrow.join((percent(trial.accuracy_before), percent(trial.accuracy_after))) if trial else ""
    return [
        Text(str(adaptation.epoch + 1)),
        Text(between.join(where)),
        Text(verdict, VERDICT_STYLES.get(verdict, "")),
        Text(loss),
        Text(accuracy),
        Text(reason),
    ]


def sizes(view: RunView) -> Table:
    """Parameters and FLOPs at the start and at the end, the results, and what the run cost."""
    summary = view.summary or {}
    start: Mapping[str, Any] = summary.get("start", {})
    end: Mapping[str, Any] = summary.get("end", {})
    rows = table(("", "start", "end", "change"), right=("start", "end", "change"))
    for name, key in (("parameters", "parameters"), ("FLOPs a sample", "flops_per_sample")):
        before, after = start.get(key), end.get(key)
        if before and after:
            change = f"{100 * (after / before - 1):+.1f} %"
            rows.add_row(name, f"{before:,.0f}", f"{after:,.0f}", change)
    if view.epochs:
        first, last = view.epochs[0], view.epochs[-1]
        rows.add_row("held-out loss", f"{first.held_out_loss:.4f}", f"{last.held_out_loss:.4f}", "")
        rows.add_row("held-out accuracy", percent(first.accuracy), percent(last.accuracy), "")
    if "test" in summary:
        rows.add_row("test loss", "", f"{summary['test']['loss']:.4f}", "")
        rows.add_row("test accuracy", "", percent(summary["test"]["accuracy"]), "")
    if "training_flops" in summary:
        rows.add_row("FLOPs spent", "", count(summary["training_flops"]), "")
    if "seconds" in summary:
        rows.add_row("time", "", duration(summary["seconds"]), "")
    return rows


def written(view: RunView) -> list[Path]:
    """Every file of the run but those of its checkpoints."""
    files = [path for path in view.folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if "checkpoints" not in path.relative_to(view.folder).parts)
